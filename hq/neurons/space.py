"""Where a model's neurons lie: blocks of neurons, and flat indices over all of them.

A block is what one down projection reads: a layer's FFN, or one expert of a layer. Blocks may have
different widths. The flat index of a neuron is the column that it has in a feature matrix. Experts
count as the router counts them; a shared expert, which every token passes, follows them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from hq.errors import HQError

NO_EXPERT = -1  # in `Location.expert`: the neuron's block is a whole layer

Position = tuple[int, ...]
"""(layer, index) of a neuron of a dense layer, (layer, expert, index) of a neuron of an expert."""


class NeuronBlock(BaseModel):
    """The neurons of one layer, or of one expert of a layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Annotated[int, Field(ge=0)]
    width: Annotated[int, Field(gt=0)]
    expert: Annotated[int, Field(ge=0)] | None = None


class Location(NamedTuple):
    """Layer, expert and index inside the block of each neuron, int64."""

    layer: Int[np.ndarray, "*n"]
    expert: Int[np.ndarray, "*n"]  # NO_EXPERT where the block is a whole layer
    within: Int[np.ndarray, "*n"]  # index inside the block


@dataclass(frozen=True)
class NeuronSpace:
    """The blocks of a model, ordered by (layer, expert); p neurons in all.

    Raises ValueError unless layers count from 0 without a gap, and each is either one block without
    an expert or experts that count from 0.
    """

    blocks: tuple[NeuronBlock, ...]

    def __post_init__(self) -> None:
        by_layer: dict[int, list[int | None]] = {}
        for block in self.blocks:
            by_layer.setdefault(block.layer, []).append(block.expert)
        ordered = list(by_layer) == list(range(len(by_layer)))
        complete = all(e in ([None], list(range(len(e)))) for e in by_layer.values())
        if not (self.blocks and ordered and complete):
            raise ValueError(
                "blocks must be ordered by (layer, expert), layers and experts counting from 0"
            )

    @classmethod
    def of_widths(cls, widths: Sequence[int]) -> "NeuronSpace":
        """The space of a dense decoder whose layers have these widths."""
        return cls(
            tuple(NeuronBlock(layer=layer, width=width) for layer, width in enumerate(widths))
        )

    @classmethod
    def rectangular(cls, n_layers: int, d_ff: int) -> "NeuronSpace":
        """The space of a dense decoder with the same width in every layer."""
        return cls.of_widths((d_ff,) * n_layers)

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __str__(self) -> str:
        widths = sorted({block.width for block in self.blocks})
        size = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        experts = " in each of their experts" if self.has_experts else ""
        return f"{self.n_layers} layers of {size}{experts}"

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.blocks[-1].layer + 1

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of neurons of each block."""
        return tuple(block.width for block in self.blocks)

    @property
    def has_experts(self) -> bool:
        """Whether a layer is a mixture of experts."""
        return len(self.blocks) > self.n_layers or any(b.expert is not None for b in self.blocks)

    @property
    def is_rectangular(self) -> bool:
        """Whether each layer is one block and all have the same width."""
        return len(set(self.widths)) == 1 and not self.has_experts

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one value per neuron on disk: (n_layers, d_ff) if rectangular, else (p,)."""
        return (self.n_layers, self.widths[0]) if self.is_rectangular else (len(self),)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The flat indices of each block."""
        ends = self._offsets.tolist()
        return tuple(slice(start, end) for start, end in pairwise(ends))

    @cached_property
    def layer_slices(self) -> tuple[slice, ...]:
        """The flat indices of each layer, all of its experts together."""
        ends = self._offsets[self._first_block].tolist()
        return tuple(slice(start, end) for start, end in pairwise(ends))

    def flat(
        self, layer: ArrayLike, index: ArrayLike, expert: ArrayLike | None = None
    ) -> Int[np.ndarray, "*n"]:
        """Flat indices of neurons, int64; arguments broadcast.

        Raises HQError for a neuron outside the space, for a layer of experts without `expert`, and
        for an expert of a layer that has none.
        """
        layers, indices, experts = np.broadcast_arrays(
            np.asarray(layer, dtype=np.int64),
            np.asarray(index, dtype=np.int64),
            np.asarray(NO_EXPERT if expert is None else expert, dtype=np.int64),
        )
        inside = (layers >= 0) & (layers < self.n_layers)
        safe = np.where(inside, layers, 0)
        first, count = self._first_block[safe], np.diff(self._first_block)[safe]
        dense = np.array([block.expert is None for block in self.blocks])[first]
        inside &= np.where(dense, experts == NO_EXPERT, (experts >= 0) & (experts < count))
        blocks = np.where(inside, first + np.where(dense, 0, experts), 0)
        inside &= (indices >= 0) & (indices < np.diff(self._offsets)[blocks])
        if not inside.all():
            worst = np.flatnonzero(~inside.ravel())[0]
            layer, expert, index = (int(a.reshape(-1)[worst]) for a in (layers, experts, indices))
            of_expert = "" if expert == NO_EXPERT else f", expert {expert}"
            raise HQError(
                f"Neuron ({layer}{of_expert}, {index}) is not in this model, which has {self}: use "
                "a NeuronSet of this model."
            )
        flat: Int[np.ndarray, "*n"] = self._offsets[blocks] + indices
        return flat

    def flat_of(self, positions: Iterable[Position]) -> Int[np.ndarray, " n"]:
        """Flat indices of neurons by position, int64. Raises HQError as `flat` does."""
        rows = [p if len(p) == 3 else (p[0], NO_EXPERT, p[-1]) for p in positions]
        layers, experts, indices = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return self.flat(layers, indices, experts)

    def positions(self, flat: ArrayLike) -> list[Position]:
        """The position of each flat index. Raises HQError for an index outside the space."""
        rows = np.stack([part.reshape(-1) for part in self.locate(flat)], axis=1).tolist()
        return [(la, i) if expert == NO_EXPERT else (la, expert, i) for la, expert, i in rows]

    def block_of(self, flat: ArrayLike) -> Int[np.ndarray, "*n"]:
        """Number of the block of each flat index. Raises HQError for an index outside the space."""
        indices = np.asarray(flat, dtype=np.int64)
        outside = indices[(indices < 0) | (indices >= len(self))]
        if outside.size:
            raise HQError(
                f"Flat index {int(outside.ravel()[0])} is not in a model of {len(self)} neurons: "
                "use neurons of this model."
            )
        blocks: Int[np.ndarray, "*n"] = np.searchsorted(self._offsets, indices, side="right") - 1
        return blocks

    def locate(self, flat: ArrayLike) -> Location:
        """Layer, expert and index of each flat index: the inverse of `flat`."""
        blocks = self.block_of(flat)
        layers = np.array([block.layer for block in self.blocks], dtype=np.int64)
        experts = [NO_EXPERT if block.expert is None else block.expert for block in self.blocks]
        index = np.asarray(flat, dtype=np.int64) - self._offsets[blocks]
        return Location(layers[blocks], np.array(experts, dtype=np.int64)[blocks], index)

    @cached_property
    def _offsets(self) -> Int[np.ndarray, " block_plus_1"]:
        return np.concatenate([[0], np.cumsum(self.widths)]).astype(np.int64)

    @cached_property
    def _first_block(self) -> Int[np.ndarray, " layer_plus_1"]:
        layers = [block.layer for block in self.blocks]
        return np.searchsorted(layers, np.arange(self.n_layers + 1)).astype(np.int64)
