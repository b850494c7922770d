"""A backend whose neurons lie elsewhere, read and scaled by the places they have in the source."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hq.backends.base import Backend, Exchange, TraceBatch, check_factors
from hq.cett import Measure, Span


class MappedBackend:
    """`inner`, with neuron (layer, i) of the source at `places[layer, i]`; all else is as it is."""

    def __init__(self, inner: Backend, places: Int[np.ndarray, "layer d_ff"]) -> None:
        self._inner = inner
        self._places = places

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def norms(self) -> Float[np.ndarray, "layer d_ff"]:
        """‖W_down[:, i]‖₂ in the source's order."""
        return np.take_along_axis(self._inner.norms, self._places, axis=-1)

    def trace(
        self,
        exchanges: Sequence[Exchange],
        measures: tuple[Measure, ...] = ("sum",),
        spans: tuple[Span, ...] = ("answer",),
        skip: frozenset[int] = frozenset(),
    ) -> Iterator[TraceBatch]:
        """Traces in the source's order."""
        for batch in self._inner.trace(exchanges, measures, spans, skip):
            places = self._places[(None,) * (batch.values.ndim - 2)]
            yield replace(batch, values=np.take_along_axis(batch.values, places, axis=-1))

    def scale(self, factors: Mapping[tuple[int, int], float]) -> AbstractContextManager[None]:
        """h_i ← α·h_i of the source's neuron i."""
        check_factors(factors, *self._places.shape)
        moved = {(layer, int(self._places[layer, i])): a for (layer, i), a in factors.items()}
        return self._inner.scale(moved)
