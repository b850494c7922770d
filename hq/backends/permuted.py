"""A backend with permuted neurons, traced and scaled by their indices in the source model."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from hq.backends.base import Backend, TokenReadings, TraceBatch
from hq.errors import HQError
from hq.models.alignment import MISSING
from hq.neurons.cett import Measure, Span
from hq.neurons.factors import Factors, check_factors, named
from hq.neurons.prompt_response import PromptResponse


class PermutedBackend:
    """`inner` in the source's order: neuron i of a layer is neuron `indices[layer][i]` of `inner`.

    Neurons with the index `MISSING` are traced as zero and listed in `missing`. `matched` says
    which neurons were recognised by their weights; the others are listed in `unmatched`.
    """

    def __init__(
        self,
        inner: Backend,
        indices: Sequence[Int[np.ndarray, " d_ff"]] | Int[np.ndarray, "layer d_ff"],
        matched: Sequence[Bool[np.ndarray, " d_ff"]] | Bool[np.ndarray, "layer d_ff"],
    ) -> None:
        self._inner = inner
        self._space = inner.identity.space
        self._indices = np.concatenate(list(indices))
        self._present = self._indices != MISSING
        blocks = self._space.block_of(np.arange(len(self._space)))
        starts = np.array([block.start for block in self._space.slices])[blocks]
        self._columns = starts + np.where(self._present, self._indices, 0)
        self.missing = frozenset(np.flatnonzero(~self._present).tolist())
        self.unmatched = frozenset(np.flatnonzero(~np.concatenate(list(matched))).tolist())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def norms(self) -> Float[np.ndarray, " p"]:
        """‖W_down[:, i]‖₂ in the source's order; zero for missing neurons."""
        return self._ordered(self._inner.norms)

    def trace(
        self,
        exchanges: Sequence[PromptResponse],
        measures: tuple[Measure, ...] = ("sum",),
        spans: tuple[Span, ...] = ("answer",),
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TraceBatch]:
        """Traces in the order of the source."""
        for batch in self._inner.trace(exchanges, measures, spans, skip):
            yield replace(batch, values=self._ordered(batch.values), missing=self.missing)

    def read_tokens(
        self,
        exchanges: Sequence[PromptResponse],
        neurons: Int[np.ndarray, " k"],
        measure: Literal["sum", "output"],
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TokenReadings]:
        """Readings of neurons of the source; zero for missing neurons."""
        own = np.flatnonzero(self._present[neurons])
        columns = self._columns[neurons[own]]
        order = np.argsort(columns)
        for batch in self._inner.read_tokens(exchanges, columns[order], measure, skip):
            values = np.zeros((len(batch.values), len(neurons)), dtype=batch.values.dtype)
            values[:, own[order]] = batch.values
            yield replace(batch, values=values)

    def scale(self, factors: Factors) -> AbstractContextManager[None]:
        """h_i ← α·h_i for neurons of the source. Raises HQError for a neuron that is missing."""
        check_factors(factors, self._space)
        permuted = {}
        for position, alpha in factors.items():
            (flat,) = self._space.flat_of([position])
            if not self._present[flat]:
                raise HQError(
                    f"Neuron {named(position)} is not in {self._inner.precision}, which pruned or "
                    "replaced it, so it cannot be scaled: leave it out."
                )
            permuted[*position[:-1], int(self._indices[flat])] = alpha
        return self._inner.scale(permuted)

    def _ordered(self, values: Float[np.ndarray, "*batch p"]) -> Float[np.ndarray, "*batch p"]:
        """The values in the source's order; zero for missing neurons."""
        ordered: Float[np.ndarray, "*batch p"] = values[..., self._columns]
        ordered[..., ~self._present] = 0
        return ordered
