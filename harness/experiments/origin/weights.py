"""Rows of the tables ranks, neuron_ranks and distances: how far weights moved from the base."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from harness.experiments.origin.nodes import TUNED
from harness.experiments.origin.tables import DistancesRow, NeuronRanksRow, RanksRow
from hq.errors import HQError
from hq.neurons.neuron_set import NeuronSet
from hq.probe.controls import magnitude_ratio, matched_neurons
from hq.probe.origin import (
    RANDOM_DRAWS,
    ChangeScale,
    normalised_ranks,
    part_names,
    rank_test,
)
from hq.stats.intervals import Estimate, estimate_mean

MATCHED_DRAWS = 999


@dataclass(frozen=True)
class WeightsAnalysis:
    """The changes of all neurons by tuning and by each precision, and the tuned model's set."""

    neurons: NeuronSet
    magnitudes: Float[np.ndarray, " p"]  # mean contributions at FP16, in the tuned model
    tuning: Float[np.ndarray, "part p"]
    quantization: Mapping[str, Float[np.ndarray, "part p"]]  # by precision
    seed: int

    def __post_init__(self) -> None:
        if len(self.neurons.positive) < 2:
            raise HQError(
                f"The NeuronSet of the tuned model has {len(self.neurons.positive)} H-Neurons, and "
                "an interval over neurons needs two or more: ask more questions."
            )

    def ranks(self) -> Iterator[RanksRow]:
        """Yield the rows of H-Neurons, and of all neurons of the set."""
        groups = {"h-neurons": self.neurons.flat_positive, "probe": self.neurons.flat}
        for group, flat in groups.items():
            matched = self._matched(flat)
            test = rank_test(self._rank, flat, matched, self.seed)
            yield RanksRow(
                group=group,
                neurons=len(flat),
                of=len(self._rank),
                seed=self.seed,
                draws=RANDOM_DRAWS,
                draws_matched=len(matched),
                rank=test.rank,
                rank_matched=test.matched,
                difference=test.difference,
                p_stable=test.p_stable,
                p_changed=test.p_changed,
                p_stable_matched=test.p_stable_matched,
                p_changed_matched=test.p_changed_matched,
                z=estimate_mean(self._z[flat]),
                magnitude_ratio=magnitude_ratio(matched, flat, self.magnitudes),
            )

    def neuron_ranks(self) -> Iterator[NeuronRanksRow]:
        """Yield a row per neuron of the set."""
        names = part_names(len(self.tuning))
        for neuron, flat in zip(self.neurons.neurons, self.neurons.flat.tolist(), strict=True):
            parts = dict(zip(names, self.tuning[:, flat].tolist(), strict=True))
            yield NeuronRanksRow(
                layer=neuron.layer,
                index=neuron.index,
                weight=neuron.weight,
                change_gate=parts.get("gate"),
                change_up=parts["up"],
                change_down=parts["down"],
                z=float(self._z[flat]),
                rank=float(self._rank[flat]),
            )

    def distances(self) -> Iterator[DistancesRow]:
        """Yield a row for tuning, and one per precision."""
        flat = self.neurons.flat_positive
        matched, tuned = self._matched(flat), self.tuning.mean(axis=0)
        for change, parts in {TUNED: self.tuning, **self.quantization}.items():
            distance, z = parts.mean(axis=0), self._scale.z(parts)
            minus = None if change == TUNED else tuned - distance
            yield DistancesRow(
                change=change,
                neurons=len(flat),
                seed=self.seed,
                distance=estimate_mean(distance[flat]),
                distance_matched=Estimate.of_draws(distance[matched].mean(axis=1)),
                distance_all=float(distance.mean()),
                z=estimate_mean(z[flat]),
                z_all=float(z.mean()) if change != TUNED else 0.0,
                tuned_minus=None if minus is None else estimate_mean(minus[flat]),
                tuned_minus_all=None if minus is None else float(minus.mean()),
                moved_more=None if minus is None else int((minus[flat] < 0).sum()),
            )

    @cached_property
    def _scale(self) -> ChangeScale:
        return ChangeScale.of(self.tuning)

    @cached_property
    def _z(self) -> Float[np.ndarray, " p"]:
        return self._scale.z(self.tuning)

    @cached_property
    def _rank(self) -> Float[np.ndarray, " p"]:
        return normalised_ranks(self._z)

    def _matched(self, flat: Int[np.ndarray, " k"]) -> Int[np.ndarray, "draws k"]:
        """Draw neurons of the same layers and similar magnitudes, without those of the set."""
        return matched_neurons(
            flat,
            self.magnitudes,
            self.neurons.model.space,
            MATCHED_DRAWS,
            self.seed,
            exclude=np.setdiff1d(self.neurons.flat, flat),
        )
