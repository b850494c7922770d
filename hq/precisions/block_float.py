"""Base class of fp8, nvfp4 and mxfp4: small floats, with one scale per block of weights.

A weight is its code's value times the scale of its block. Checkpoints of these formats are read,
and any FP16 checkpoint is rounded to the nearest codes while it is loaded. In both cases the
weights are dequantized once, so results show the format of the weights without any kernel's
rounding. Activations are never quantized.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hq.errors import HQError
from hq.models.checkpoint import DENSE_DTYPES, StoredTensor, read_tensor, tensors_of
from hq.models.expert_weights import is_routed
from hq.precisions.base import (
    WEIGHT_NAMES,
    StoredWeight,
    compute_dtype,
    require_precision,
)
from hq.precisions.dense import FP16
from hq.precisions.packed import Dequantized, load_dequantized, packed_weight, record
from hq.precisions.packed_checkpoints import checkpoint
from hq.precisions.packed_checkpoints.checkpoint import compressed_group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Scales of activations and of the key-value cache that were fixed by a calibration.
_STATIC_SCALES = (
    *("input_scale", "input_global_scale", "activation_scale", "output_scale"),
    *("k_scale", "v_scale", "q_scale"),
)
_READ = "FP8_DYNAMIC, NVFP4A16 or MXFP4A16"  # schemes of compressed-tensors


def unreadable(path: Path, reason: str) -> HQError:
    """The error of a checkpoint that is more than its weights."""
    return checkpoint.unreadable(path, reason, _READ)


@dataclass(frozen=True, slots=True)
class BlockScheme:
    """How the projections of a checkpoint are stored."""

    codes: str  # the last part of the name of a tensor of codes
    scales: str
    block: tuple[int | None, int | None]  # outputs, inputs that share a scale; None: all of them
    also: tuple[str, ...] = ()  # more parts, of one number each
    activations: bool = False  # the checkpoint is meant to run with quantized activations

    @property
    def parts(self) -> tuple[str, ...]:
        """The last part of the name of each tensor that a projection has."""
        return (self.codes, self.scales, *self.also)

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The number of scales along outputs and inputs; the last blocks may be incomplete."""
        rows, columns = (
            -(-size // (block or size)) for size, block in zip(shape, self.block, strict=True)
        )
        return rows, columns


def expand(
    scales: Float[Tensor, "row column"],
    shape: tuple[int, int],
    block: tuple[int | None, int | None],
) -> Float[Tensor, "#d_out #d_in"]:
    """The scale of each weight, or of a whole row or column of them where blocks are so large."""
    for dim, (size, width) in enumerate(zip(shape, block, strict=True)):
        if width not in (None, 1):
            scales = scales.repeat_interleave(width, dim).narrow(dim, 0, size)
    return scales


class BlockFloat(Dequantized):
    """A format of small floats with one scale per block."""

    name: str
    storage: ClassVar[str]  # type of the codes
    code_bits: ClassVar[int]
    scale_bits: ClassVar[int]  # of a scale that hq makes
    extra_bits: ClassVar[int] = 0  # of each projection, beside the scales of its blocks
    made: ClassVar[BlockScheme]  # what hq makes from an FP16 checkpoint
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]]  # of each part in safetensors
    replaces: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)

    def loaded_in(self, device: torch.device) -> torch.dtype:
        """FP16, from which it rounds."""
        return FP16().loaded_in(device)

    def reads(self, quantization: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this quantization config is stored at this precision."""
        raise NotImplementedError

    def scheme(self, path: Path, quantization: Mapping[str, Any]) -> BlockScheme:
        """How a checkpoint is stored. Raises HQError for what hq does not read."""
        raise NotImplementedError

    def shape(self, codes: StoredTensor) -> tuple[int, ...]:
        """The shape of the weights that these codes represent."""
        return codes.shape

    def values(self, codes: Tensor) -> Float[Tensor, "d_out d_in"]:
        """The numbers that codes represent, float32."""
        return codes.float()

    def scales(self, parts: Mapping[str, Tensor], scheme: BlockScheme) -> Float[Tensor, "..."]:
        """The factor of each block, float32."""
        return parts[scheme.scales].float()

    def rounded(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """Float32 weights, rounded to the nearest codes of their blocks and dequantized."""
        raise NotImplementedError

    def load(self, path: Path, device: torch.device) -> "PreTrainedModel":
        """A dense model of the weights that the checkpoint stores, or that its FP16 rounds to."""
        quantization = require_precision(path, self.name)
        if quantization is not None:
            return self._read(path, self.scheme(path, quantization), device)
        model = FP16().load(path, device)
        for name, linear in model.get_decoder().named_modules():
            if isinstance(linear, nn.Linear):
                self._round(name, linear)
            elif is_routed(linear):
                self._round_experts(name, linear)
        return model

    def layer(self, weight: Float[Tensor, "d_out d_in"]) -> nn.Module:
        """A linear with this weight, rounded to FP16 and then to the nearest codes."""
        linear = FP16().layer(weight)
        assert isinstance(linear, nn.Linear)
        self._round("weight", linear)
        return linear

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether the weight of the projection was dequantized from this format."""
        weight = packed_weight(module)
        return weight is not None and weight.stored.storage.startswith(self.storage)

    def _round(self, name: str, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float()
        group = self.made.block[1]
        if group is not None and weight.shape[1] % group:
            raise HQError(
                f"{name} has {weight.shape[1]} inputs, which blocks of {group} do not divide: "
                f"{self.name} cannot run this model."
            )
        dense = self.rounded(weight).to(compute_dtype(weight.device))
        linear.weight = nn.Parameter(dense, requires_grad=False)
        rows, columns = self.made.grid((linear.out_features, linear.in_features))
        scale_bits = rows * columns * self.scale_bits + self.extra_bits
        nbytes = (weight.numel() * self.code_bits + scale_bits) // 8
        record(linear, self._stored(self.made, nbytes, weight.numel(), weight.device))

    def stored_experts(self, module: nn.Module) -> StoredWeight | None:
        """How the format stores the experts that were rounded to it."""
        weight = packed_weight(module)
        return None if weight is None else weight.stored

    def _round_experts(self, name: str, routed: Any) -> None:
        """Round each matrix of each expert as that of a linear layer."""
        nbytes = weights = 0
        for packed in (routed.gate_up_proj, routed.down_proj):
            for expert, stored in enumerate(packed):
                linear = nn.Linear(1, 1, bias=False, device="meta")
                matrix = stored.T if routed.is_transposed else stored
                linear.out_features, linear.in_features = matrix.shape
                linear.weight = nn.Parameter(matrix, requires_grad=False)
                self._round(f"{name}, expert {expert},", linear)
                rounded = linear.weight.T if routed.is_transposed else linear.weight
                packed.data[expert] = rounded
                of_linear = packed_weight(linear)
                assert of_linear is not None
                nbytes, weights = nbytes + of_linear.stored.nbytes, weights + matrix.numel()
        record(routed, self._stored(self.made, nbytes, weights, routed.down_proj.device))

    def _stored(
        self, scheme: BlockScheme, nbytes: int, weights: int, device: torch.device
    ) -> StoredWeight:
        outputs, inputs = scheme.block
        granularity = f"blocks of {outputs}×{inputs}"
        if inputs is None:
            granularity = "one scale" if outputs is None else "a scale per row"
        compute = f"dequantized to {str(compute_dtype(device)).removeprefix('torch.')}"
        unapplied = ", activations not quantized" if scheme.activations else ""
        return StoredWeight(f"{self.storage}, {granularity}, {compute}{unapplied}", nbytes, weights)

    def _read(self, path: Path, scheme: BlockScheme, device: torch.device) -> "PreTrainedModel":
        """All projections are checked, and all scales read, before the first weight is."""
        tensors = tensors_of(path)
        projections = self._projections(path, scheme, tensors)
        scales = {name: self._scales(scheme, name, tensors) for name in projections}
        parts = {f"{name}.{part}" for name in projections for part in scheme.parts}
        # Zero points of a symmetric scheme, which old releases of compressed-tensors save.
        parts |= {f"{name}.weight_zero_point" for name in projections}
        others = {name: tensor for name, tensor in tensors.items() if name not in parts}
        for tensor in others.values():
            if tensor.name.endswith(WEIGHT_NAMES) and tensor.dtype not in DENSE_DTYPES:
                raise HQError(
                    f"{path} has {tensor.name} in {tensor.dtype}, without the scales of "
                    f"{self.name}: the checkpoint is incomplete."
                )
        state = {name: read_tensor(tensor.file, name) for name, tensor in others.items()}
        stored: dict[str, StoredWeight] = {}
        for name in projections:
            codes = tensors[f"{name}.{scheme.codes}"]
            values = self.values(read_tensor(codes.file, codes.name))
            shape = (values.shape[0], values.shape[1])
            dense = values.mul_(expand(scales[name], shape, scheme.block))
            if not torch.isfinite(dense).all():
                raise HQError(f"{path} has codes in {codes.name} that are NaN: copy it again.")
            state[f"{name}.weight"] = dense
            nbytes = sum(t.end - t.start for p in scheme.parts for t in [tensors[f"{name}.{p}"]])
            stored[name] = self._stored(scheme, nbytes, dense.numel(), device)
        return load_dequantized(path, state, stored, device)

    def _projections(
        self, path: Path, scheme: BlockScheme, tensors: Mapping[str, StoredTensor]
    ) -> list[str]:
        """Names of the quantized projections. Raises HQError for tensors that do not fit."""
        static = next((n for n in tensors if n.rpartition(".")[2] in _STATIC_SCALES), None)
        if static is not None:
            raise unreadable(path, f"has static scales of activations ({static})")
        names = {
            name.rpartition(".")[0]: None
            for name, tensor in tensors.items()
            if name.rpartition(".")[2] == scheme.scales
            or (name.rpartition(".")[2] == scheme.codes and tensor.dtype not in DENSE_DTYPES)
        }
        if not names:
            raise HQError(
                f"{path} says that it is {self.name}, but no tensor in it is: its config is that "
                "of another checkpoint."
            )
        for name in names:
            for part in scheme.parts:
                if f"{name}.{part}" not in tensors:
                    raise HQError(f"{path} lacks {name}.{part}: the checkpoint is incomplete.")
            self._require_fitting(path, scheme, name, tensors)
        return list(names)

    def _require_fitting(
        self, path: Path, scheme: BlockScheme, name: str, tensors: Mapping[str, StoredTensor]
    ) -> None:
        """Raises HQError for a type or shape of codes or scales that the format does not have."""
        for part in scheme.parts:
            tensor, expected = tensors[f"{name}.{part}"], self.dtypes[part]
            if tensor.dtype not in expected:
                raise HQError(
                    f"{path} has {tensor.name} in {tensor.dtype}, not {' or '.join(expected)}: hq "
                    f"does not read it as {self.name}."
                )
            if part in scheme.also and prod(tensor.shape) != 1:
                raise HQError(f"{tensor.name} in {path} has the shape {tensor.shape}, not (1,).")
        codes, scales = (tensors[f"{name}.{part}"] for part in (scheme.codes, scheme.scales))
        shape = self.shape(codes)
        if len(shape) != 2:
            raise HQError(f"{codes.name} in {path} has the shape {shape}, which is no matrix.")
        grid = scheme.grid((shape[0], shape[1]))
        flat = [size for size in scales.shape if size != 1]
        if flat != [size for size in grid if size != 1]:
            raise HQError(
                f"{scales.name} in {path} has the shape {scales.shape}, not {grid}, which "
                f"{shape[0]}×{shape[1]} weights in blocks of {self._sizes(scheme, shape)} have: "
                "its config is that of another checkpoint."
            )
        group = scheme.block[1]
        if group is not None and scheme.block[0] == 1 and shape[1] % group:
            raise HQError(
                f"{codes.name} in {path} has {shape[1]} inputs, which blocks of {group} do not "
                "divide: hq does not read such a checkpoint."
            )

    def _sizes(self, scheme: BlockScheme, shape: tuple[int, ...]) -> str:
        return "×".join(str(b or size) for b, size in zip(scheme.block, shape, strict=True))

    def _scales(
        self, scheme: BlockScheme, name: str, tensors: Mapping[str, StoredTensor]
    ) -> Float[Tensor, "row column"]:
        """The factor of each block of a projection. Raises HQError if one is not finite."""
        parts = {
            part: read_tensor(tensors[f"{name}.{part}"].file, f"{name}.{part}")
            for part in scheme.parts
            if part != scheme.codes
        }
        codes = tensors[f"{name}.{scheme.codes}"]
        rows, columns = self.shape(codes)
        scales = self.scales(parts, scheme)
        if not torch.isfinite(scales).all():
            raise HQError(
                f"{codes.file.parent} has scales of {name} that are not finite: copy the "
                "checkpoint again, or quantize it again."
            )
        return scales.reshape(scheme.grid((rows, columns)))


def compressed_scheme(
    path: Path, quantization: Mapping[str, Any], formats: tuple[str, ...], scheme: BlockScheme
) -> BlockScheme:
    """`scheme`, with activations as a compressed-tensors config states them.

    Dynamic scales of activations are computed at run time, so that weights alone are a model of
    the format; static ones belong to the checkpoint. Raises HQError for static scales.
    """
    group = compressed_group(path, quantization, formats, _READ)
    inputs = group.get("input_activations")
    if isinstance(inputs, dict) and inputs.get("dynamic") is not True:
        raise unreadable(path, "quantizes activations with static scales")
    if group["weights"].get("symmetric", True) is not True:
        raise unreadable(path, "has zero points")
    return replace(scheme, activations=bool(inputs))
