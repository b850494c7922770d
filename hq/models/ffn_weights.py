"""Dequantized FFN weights, layer by layer, of a checkpoint or a loaded model.

Only one layer is in memory at a time, whatever the model.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hq.errors import HQError
from hq.models.architectures import Architecture
from hq.models.checkpoint import architecture_at, read_tensor, tensor_files, text_config


class FFN(NamedTuple):
    """One layer's FFN, as a rule with the norm before it multiplied into what reads."""

    gate: Float[Tensor, "d_ff d_model"] | None
    up: Float[Tensor, "d_ff d_model"]
    down: Float[Tensor, "d_model d_ff"]
    bits: float = 16.0  # of a weight as it is stored, where the three differ the fewest
    explained: float = math.inf  # relative error of weights that the stored scales explain

    @property
    def reads(self) -> list[Float[Tensor, "d_ff d_model"]]:
        """The matrices whose rows a neuron reads with."""
        return [self.up] if self.gate is None else [self.gate, self.up]

    @property
    def parts(self) -> list[Float[Tensor, "d_ff d_model"]]:
        """All of a neuron's vectors, as rows."""
        return [*self.reads, self.down.T]

    def at(self, places: Int[Tensor, " k"]) -> "FFN":
        """These neurons alone, in this order."""
        gate = None if self.gate is None else self.gate[places]
        return self._replace(gate=gate, up=self.up[places], down=self.down[:, places])

    def turned(self, rotation: Float[Tensor, "d_model d_model"]) -> "FFN":
        """In another basis of the residual stream, which neurons know nothing of."""
        gate = None if self.gate is None else self.gate @ rotation
        return self._replace(gate=gate, up=self.up @ rotation, down=rotation.T @ self.down)


class FFNs(Sequence[FFN]):
    """The FFN of each layer, read anew each time that it is asked for."""

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
    """What reads a weight of a dense checkpoint, by layer and path in it: float32, as it is stored.

    Raises HQError for a weight that is not there.
    """
    places = tensor_files(path)

    def read(layer: int, name: str) -> Tensor:
        ending = f"{family.layers}.{layer}.{name}.weight"
        found = next((n for n in places if f".{n}".endswith(f".{ending}")), None)
        if found is None:
            raise HQError(
                f"{path} lacks {ending}: name the dense checkpoint, its weights under the "
                "names that transformers' model has."
            )
        return read_tensor(places[found], found).float()

    return read


def of_checkpoint(path: Path, folded: bool = True) -> FFNs:
    """The FFNs of a dense checkpoint; `folded`: with the norm before it, else as it is stored.

    HQError for one that is packed, or lacks a weight.
    """
    config = text_config(path)
    family = architecture_at(path)
    tensor = weights_of(path, family)

    def weight(layer: int, name: str) -> Tensor:
        read = tensor(layer, name)
        return read.T if family.transposed else read

    def read(layer: int) -> FFN:
        folds = folded and family.norm
        norm = tensor(layer, family.norm) + family.norm_offset if folds else torch.ones(())
        return _ffn(family, lambda name: weight(layer, name), norm, 16.0)

    return FFNs(int(config.num_hidden_layers), read)


def of_modules(
    layers: Sequence[nn.Module],
    family: Architecture,
    dense: Callable[[nn.Module], Tensor],
    bits: Callable[[nn.Module], float],
    explained: Callable[[nn.Module], float] = lambda _: math.inf,
) -> FFNs:
    """The FFNs of a loaded model; `dense` tells a projection's weight, [d_out, d_in]."""

    def read(layer: int) -> FFN:
        module: Any = layers[layer]

        def weight(name: str) -> Tensor:
            return dense(module.get_submodule(name)).float().cpu()

        norm = torch.ones(())
        if family.norm:
            norm = module.get_submodule(family.norm).weight.float().cpu() + family.norm_offset
        projections = [module.get_submodule(name) for name in family.projections]
        found = _ffn(family, weight, norm, min(map(bits, projections)))
        return found._replace(explained=max(map(explained, projections)))

    return FFNs(len(layers), read)


def _ffn(family: Architecture, weight: Callable[[str], Tensor], norm: Tensor, bits: float) -> FFN:
    up = weight(family.up)
    gate = weight(family.gate) if family.gate else None
    if family.fused:  # the gate is the first half
        gate, up = up.chunk(2)
    return FFN(None if gate is None else gate * norm, up * norm, weight(family.down), bits)
