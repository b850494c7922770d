"""A packed checkpoint: what its config states, and its layers, checked against each other."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from hq.checkpoint import first_line, read_tensor, tensor_files
from hq.errors import HQError
from hq.packed import compressed
from hq.packed.layout import WORD, awq_dense, compressed_dense, gptq_dense

CONFIG_FILES = ("config.json", "quantize_config.json", "quant_config.json")
_ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}


class Scheme(BaseModel):
    """How a checkpoint says that its layers are quantized."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: Literal["gptq", "awq", "compressed-tensors"] = Field(
        default="gptq", validation_alias=AliasChoices("quant_method", "method")
    )
    bits: Literal[2, 3, 4, 8] = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int = Field(validation_alias=AliasChoices("group_size", "q_group_size"))
    desc_act: bool = False
    sym: bool = True
    format: str = Field(
        default="", validation_alias=AliasChoices("checkpoint_format", "version", "format")
    )

    def __str__(self) -> str:
        """As tables name it: gptq 4 bit g64 sym."""
        group = f"g{self.group_size}" if self.group_size > 0 else "one group"
        marks = " act-order" if self.desc_act else ""
        symmetric = "sym" if self.sym and self.method != "awq" else "asym"
        return f"{self.method} {self.bits} bit {group} {symmetric}{marks}"


@dataclass(frozen=True)
class PackedLayer:
    """One quantized projection as it is stored."""

    PARTS: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    NEEDED: ClassVar = {True: 3, False: 3}  # how many of them none lacks, symmetric or not

    name: str
    scheme: Scheme
    tensors: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, zero points, scales and order."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def d_in(self) -> int:
        """Inputs."""
        rows = self.tensors["qweight"].shape[0]
        return rows if self.scheme.method == "awq" else rows * WORD // self.scheme.bits

    @property
    def d_out(self) -> int:
        """Outputs."""
        return self.tensors["scales"].shape[1]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The weights that the codes stand for, float32. HQError where tensors do not fit."""
        for part, shape in self._wanted().items():
            found = tuple(self.tensors[part].shape)
            if found != shape:
                raise HQError(
                    f"{self.name}.{part} has the shape {found}, not {shape}: its config says "
                    f"{self.scheme}, which is of another checkpoint."
                )
        dense = self._dense()
        if not torch.isfinite(dense).all():
            raise HQError(f"{self.name} has scales that are not finite: quantize it again.")
        return dense

    def _dense(self) -> Float[Tensor, "d_out d_in"]:
        part = self.tensors
        if self.scheme.method == "awq":
            return awq_dense(part["qweight"], part["qzeros"], part["scales"])
        order = part.get("g_idx", self._ordered())
        last, groups = int(order.max()), len(part["scales"])
        if not 0 <= int(order.min()) <= last < groups:
            raise HQError(
                f"{self.name}.g_idx names group {last} of {groups}: the checkpoint is damaged, "
                "copy it again."
            )
        offset = _ZERO_OFFSET[self.scheme.format or "gptq"]
        return gptq_dense(
            part["qweight"], part["qzeros"], part["scales"], order, self.scheme.bits, offset
        )

    def _ordered(self) -> Tensor:
        """g_idx where a checkpoint leaves it out: groups in order."""
        return torch.arange(self.d_in) // self._group

    @property
    def _group(self) -> int:
        return self.scheme.group_size if self.scheme.group_size > 0 else self.d_in

    def _wanted(self) -> dict[str, tuple[int, ...]]:
        """The shape of each part."""
        bits, groups = self.scheme.bits, -(-self.d_in // self._group)
        awq = self.scheme.method == "awq"
        return {
            "qweight": (self.d_in, self.d_out * bits // WORD)
            if awq
            else (self.d_in * bits // WORD, self.d_out),
            "qzeros": (groups, -(-self.d_out * bits // WORD)),
            "scales": (groups, self.d_out),
        } | ({"g_idx": (self.d_in,)} if "g_idx" in self.tensors else {})


@dataclass(frozen=True)
class CompressedLayer(PackedLayer):
    """One projection as compressed-tensors packs it: outputs are rows."""

    PARTS: ClassVar[tuple[str, ...]] = (
        *("weight_packed", "weight_scale", "weight_shape"),
        *("weight_zero_point", "weight_g_idx"),
    )
    NEEDED: ClassVar = {True: 3, False: 4}

    @property
    def d_in(self) -> int:
        """Inputs."""
        return self.tensors["weight_packed"].shape[-1] * WORD // self.scheme.bits

    @property
    def d_out(self) -> int:
        """Outputs."""
        return self.tensors["weight_packed"].shape[0]

    def _dense(self) -> Float[Tensor, "d_out d_in"]:
        part = self.tensors
        shape = part["weight_shape"].tolist()
        if shape != [self.d_out, self.d_in] or self.d_in % self._group:
            raise HQError(
                f"{self.name} is of the shape {shape}, which does not fill whole words and groups "
                f"of {self.scheme}: hq does not read such a checkpoint."
            )
        if "weight_g_idx" in part:
            raise HQError(
                f"{self.name} has its inputs in another order (weight_g_idx), which hq does not "
                "read: quantize with actorder 'weight' or none."
            )
        zeros = None if self.scheme.sym else part["weight_zero_point"]
        return compressed_dense(
            part["weight_packed"], part["weight_scale"], zeros, self.scheme.bits
        )

    def _wanted(self) -> dict[str, tuple[int, ...]]:
        groups = -(-self.d_in // self._group)
        zeros = (-(-self.d_out * self.scheme.bits // WORD), groups)
        return {
            "weight_packed": (self.d_out, self.d_in * self.scheme.bits // WORD),
            "weight_scale": (self.d_out, groups),
            "weight_shape": (2,),
        } | ({} if self.scheme.sym else {"weight_zero_point": zeros})


_LAYERS = {"gptq": PackedLayer, "awq": PackedLayer, compressed.METHOD: CompressedLayer}


class PackedCheckpoint:
    """A folder of packed weights. HQError for one that is none, or that this cannot read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scheme = scheme_of(path)
        self._kind = _LAYERS[self.scheme.method]
        self._places = tensor_files(path)

    @cached_property
    def names(self) -> list[str]:
        """The quantized projections."""
        codes = f".{self._kind.PARTS[0]}"
        found = [n.removesuffix(codes) for n in self._places if n.endswith(codes)]
        if not found:
            raise HQError(
                f"{self.path} says {self.scheme}, but no tensor in it is packed: it is another "
                "checkpoint's config."
            )
        return found

    def layer(self, name: str) -> PackedLayer:
        """One projection. HQError where a part of it is missing."""
        for part in self._kind.PARTS[: self._kind.NEEDED[self.scheme.sym]]:
            if f"{name}.{part}" not in self._places:
                raise HQError(f"{self.path} lacks {name}.{part}: the checkpoint is incomplete.")
        places = {part: f"{name}.{part}" for part in self._kind.PARTS}
        parts = {p: self._tensor(place) for p, place in places.items() if place in self._places}
        return self._kind(name, self.scheme, parts)

    def layers(self) -> Iterator[PackedLayer]:
        """All of them, one at a time."""
        return map(self.layer, self.names)

    def others(self) -> dict[str, Tensor]:
        """Every tensor that belongs to no packed projection: embeddings, norms, biases."""
        packed = {f"{name}.{part}" for name in self.names for part in self._kind.PARTS}
        return {name: self._tensor(name) for name in self._places if name not in packed}

    def _tensor(self, name: str) -> Tensor:
        return read_tensor(self._places[name], name)


def scheme_of(path: Path) -> Scheme:
    """What a folder says of how it is quantized: in config.json, or in a file of its own.

    auto-gptq writes quantize_config.json alone, of which transformers takes no notice: it would
    load a random model. Raises HQError where nothing is said, or something that hq cannot read.
    """
    stated = _stated(path)
    if stated is None:
        raise HQError(f"{path} does not say that it is quantized: it is no packed checkpoint.")
    if stated.get("quant_method") == compressed.METHOD:
        stated = compressed.flat(path, stated)
    try:
        scheme = Scheme.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise HQError(
            f"The quantization config of {path} cannot be used: {where}: {first['msg']}."
        ) from error
    _require_readable(path, scheme)
    return scheme


def _stated(path: Path) -> dict[str, Any] | None:
    for name in CONFIG_FILES:
        file = path / name
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise HQError(f"{file} cannot be read: {first_line(error)}.") from error
        found = values.get("quantization_config") if name == "config.json" else values
        if isinstance(found, dict):
            return {"quant_method": "awq"} | found if name == "quant_config.json" else found
    return None


def _require_readable(path: Path, scheme: Scheme) -> None:
    if scheme.method == compressed.METHOD:
        return
    formats = ("", "gemm") if scheme.method == "awq" else ("", *_ZERO_OFFSET)
    if scheme.format.lower() not in formats:
        raise HQError(
            f"{path} is in the {scheme.method} format {scheme.format!r}, which hq does not read: "
            f"save it as {formats[1]!r}."
        )
    if scheme.method == "awq" and scheme.bits != 4:
        raise HQError(f"{path} is AWQ of {scheme.bits} bits, which hq does not read: save 4.")
