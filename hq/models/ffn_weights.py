"""Dequantized FFN weights of a checkpoint or a loaded model, one block in memory at a time."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hq.errors import HQError
from hq.models.architectures import Architecture
from hq.models.checkpoint import (
    DENSE_DTYPES,
    StoredTensor,
    architecture_at,
    read_tensor,
    tensors_of,
    text_config,
)
from hq.models.expert_weights import Matrices, loaded_expert, stored_expert
from hq.models.placement import in_memory
from hq.neurons.space import NeuronBlock


class FFN(NamedTuple):
    """The weights of one layer's FFN, usually with the preceding norm folded into gate and up."""

    gate: Float[Tensor, "d_ff d_model"] | None
    up: Float[Tensor, "d_ff d_model"]
    down: Float[Tensor, "d_model d_ff"]
    bits: float = 16.0  # per stored weight; the smallest of the three projections
    rounding_error: float = math.inf  # relative error of weights that the stored scales explain

    @property
    def reads(self) -> list[Float[Tensor, "d_ff d_model"]]:
        """The matrices whose rows read the residual stream."""
        return [self.up] if self.gate is None else [self.gate, self.up]

    @property
    def parts(self) -> list[Float[Tensor, "d_ff d_model"]]:
        """All of a neuron's vectors, as rows."""
        return [*self.reads, self.down.T]

    def at(self, indices: Int[Tensor, " k"]) -> "FFN":
        """Return the FFN of these neurons only, in this order."""
        gate = None if self.gate is None else self.gate[indices]
        return self._replace(gate=gate, up=self.up[indices], down=self.down[:, indices])

    def rotated(self, rotation: Float[Tensor, "d_model d_model"]) -> "FFN":
        """Return the FFN in another basis of the residual stream; h does not change."""
        gate = None if self.gate is None else self.gate @ rotation
        return self._replace(gate=gate, up=self.up @ rotation, down=rotation.T @ self.down)


class FFNs(Sequence[FFN]):
    """The FFN of each block (a layer, or an expert of a layer), read again at each access."""

    def __init__(self, count: int, read: Callable[[int], FFN]) -> None:
        self._count = count
        self._read = read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, layer: int) -> FFN: ...
    @overload
    def __getitem__(self, layer: slice) -> list[FFN]: ...
    def __getitem__(self, layer: int | slice) -> FFN | list[FFN]:
        if isinstance(layer, slice):
            return [self._read(i) for i in range(self._count)[layer]]
        if not 0 <= layer < self._count:
            raise IndexError(layer)
        return self._read(layer)


def weights_of(path: Path, family: Architecture) -> Callable[[int, str], Tensor]:
    """Return a function that reads a dense checkpoint's weight, by layer and path in the layer.

    Weights are float32 and have the shape in which they are stored. The function raises HQError if
    the checkpoint lacks the weight, or stores codes in its place.
    """
    tensor = _tensors(path, family)
    return lambda layer, name: tensor(layer, f"{name}.weight")


def _in_layers(path: Path, family: Architecture) -> dict[str, StoredTensor]:
    """Return the tensors of the layers of a checkpoint, by name from the list of layers on."""
    inside = re.compile(rf"(?:^|\.)({re.escape(family.layers)}\.\d+\..+)$")
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors_of(path).items():
        if match := inside.search(name):
            found.setdefault(match[1], tensor)
    return found


def _tensors(path: Path, family: Architecture) -> Callable[[int, str], Tensor]:
    """Return a function that reads a dense checkpoint's tensor, by layer and name in the layer."""
    tensors = _in_layers(path, family)

    def read(layer: int, name: str) -> Tensor:
        ending = f"{family.layers}.{layer}.{name}"
        tensor = tensors.get(ending)
        if tensor is None:
            raise HQError(
                f"{path} lacks {ending}: name the dense checkpoint, with weights under the names "
                "that the model has in transformers."
            )
        if tensor.dtype not in DENSE_DTYPES:
            raise HQError(
                f"{path} has {tensor.name} in {tensor.dtype}, so it is quantized: name the dense "
                "checkpoint."
            )
        return read_tensor(tensor.file, tensor.name).float()

    return read


def of_checkpoint(path: Path, folded: bool = True) -> FFNs:
    """Return the FFNs of a dense checkpoint; `folded` multiplies the preceding norm into them.

    Reading a layer raises HQError if the checkpoint is packed or lacks a weight.
    """
    config = text_config(path)
    family = architecture_at(path)
    tensor = weights_of(path, family)

    named, names = _tensors(path, family), _in_layers(path, family)
    blocks = family.space(config).blocks

    def weight(layer: int, name: str) -> Tensor:
        stored = tensor(layer, name)
        return stored.T if family.transposed else stored

    def read(number: int) -> FFN:
        block = blocks[number]
        folds = folded and family.norm
        norm = tensor(block.layer, family.norm) + family.norm_offset if folds else torch.ones(())

        def has(name: str) -> bool:
            return f"{family.layers}.{block.layer}.{name}" in names

        if _is_routed(block, family, config):
            assert block.expert is not None
            matrices = stored_expert(lambda n: named(block.layer, n), has, family, block.expert)
            return _expert(matrices, norm, 16.0)
        prefix = _prefix(block, family)
        return _ffn(family, lambda name: weight(block.layer, prefix(name)), norm, 16.0)

    return FFNs(len(blocks), read)


def _is_routed(block: NeuronBlock, family: Architecture, config: Any) -> bool:
    """Whether a block is a routed expert: no dense layer, and no shared expert."""
    experts = family.experts
    return (
        experts is not None
        and block.expert is not None
        and block.expert < int(getattr(config, experts.count))
    )


def _prefix(block: NeuronBlock, family: Architecture) -> Callable[[str], str]:
    """Return the function from a projection's path in a dense layer to that in this block."""
    if block.expert is None:
        return lambda name: name
    assert family.experts is not None
    shared = family.experts.shared
    return lambda name: f"{shared}.{name.rpartition('.')[2]}"


def _expert(matrices: Matrices, norm: Tensor, bits: float) -> FFN:
    gate, up, down = matrices
    return FFN(gate * norm, up * norm, down, bits)


def of_modules(
    layers: Sequence[nn.Module],
    family: Architecture,
    config: Any,
    dense: Callable[[nn.Module], Tensor],
    bits: Callable[[nn.Module], float],
    rounding_error: Callable[[nn.Module], float] = lambda _: math.inf,
) -> FFNs:
    """Return the FFNs of a loaded model's blocks, the preceding norms folded in.

    `dense`, `bits` and `rounding_error` return a projection's dequantized weight [d_out, d_in], its
    bits per stored weight, and the relative error of weights that its stored scales explain.
    """
    blocks = family.space(config).blocks

    def read(number: int) -> FFN:
        block = blocks[number]
        module: Any = layers[block.layer]
        prefix = _prefix(block, family)

        def weight(name: str) -> Tensor:
            return dense(module.get_submodule(prefix(name))).float().cpu()

        norm = torch.ones(())
        if family.norm:
            of_norm = module.get_submodule(family.norm)
            with in_memory(of_norm):
                norm = of_norm.weight.float().cpu() + family.norm_offset
        if _is_routed(block, family, config):
            assert block.expert is not None
            assert family.experts is not None
            routed = module.get_submodule(family.experts.block).experts
            gate, up, down = (w.float().cpu() for w in loaded_expert(routed, block.expert))
            return _expert((gate, up, down), norm, bits(routed))
        projections = [module.get_submodule(prefix(name)) for name in family.projections]
        ffn = _ffn(family, weight, norm, min(map(bits, projections)))
        return ffn._replace(rounding_error=max(map(rounding_error, projections)))

    return FFNs(len(blocks), read)


def _ffn(family: Architecture, weight: Callable[[str], Tensor], norm: Tensor, bits: float) -> FFN:
    up = weight(family.up)
    gate = weight(family.gate) if family.gate else None
    if family.fused:  # the gate is the first half
        gate, up = up.chunk(2)
    return FFN(None if gate is None else gate * norm, up * norm, weight(family.down), bits)
