"""A backend with permuted neurons, traced and scaled by their indices in the source model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from hq.backends.base import Backend, TraceBatch
from hq.errors import HQError
from hq.models.alignment import MISSING
from hq.neurons.cett import Measure, Span
from hq.neurons.factors import check_factors
from hq.neurons.prompt_response import PromptResponse


class PermutedBackend:
    """`inner`, which has neuron (layer, i) of the source model at index `places[layer, i]`.

    Neurons with the index `MISSING` are traced as zero and listed in `missing`. `found` marks the
    neurons that were identified by their weights; the others are listed in `unmatched`.
    """

    def __init__(
        self,
        inner: Backend,
        places: Int[np.ndarray, "layer d_ff"],
        found: Bool[np.ndarray, "layer d_ff"],
    ) -> None:
        self._inner = inner
        self._places = places
        self._present = places != MISSING
        self._read = np.where(self._present, places, 0)
        self.missing = frozenset(np.flatnonzero(~self._present).tolist())
        self.unmatched = frozenset(np.flatnonzero(~found).tolist())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def norms(self) -> Float[np.ndarray, "layer d_ff"]:
        """‖W_down[:, i]‖₂ in the order of the source; zero for missing neurons."""
        return self._placed(self._inner.norms)

    def trace(
        self,
        exchanges: Sequence[PromptResponse],
        measures: tuple[Measure, ...] = ("sum",),
        spans: tuple[Span, ...] = ("answer",),
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TraceBatch]:
        """Traces in the order of the source."""
        for batch in self._inner.trace(exchanges, measures, spans, skip):
            yield replace(batch, values=self._placed(batch.values), missing=self.missing)

    def scale(self, factors: Mapping[tuple[int, int], float]) -> AbstractContextManager[None]:
        """Multiply h_i of the source's neuron i by α. Raises HQError for a missing neuron."""
        check_factors(factors, *self._places.shape)
        for layer, index in factors:
            if not self._present[layer, index]:
                raise HQError(
                    f"Neuron ({layer}, {index}) is not in {self._inner.precision}, which pruned or "
                    "replaced it, so it cannot be scaled: leave it out."
                )
        moved = {(layer, int(self._places[layer, i])): a for (layer, i), a in factors.items()}
        return self._inner.scale(moved)

    def _placed(
        self, values: Float[np.ndarray, "*batch layer d_ff"]
    ) -> Float[np.ndarray, "*batch layer d_ff"]:
        read = self._read[(None,) * (values.ndim - 2)]
        placed: Float[np.ndarray, "*batch layer d_ff"] = np.take_along_axis(values, read, axis=-1)
        placed[..., ~self._present] = 0
        return placed
