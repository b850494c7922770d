"""Rows of the tables of survival: degraded neurons, and their prediction from FP16 alone.

Statistics of activity are computed on the samples of even folds, errors on those of odd folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from harness.experiments.survival.tables import OfStatistic, Survival
from harness.stages.identify import Rows
from harness.tables.schema import Row
from hq.errors import HQError
from hq.models.ffn_weights import FFNs
from hq.neurons.neuron_set import NeuronSet
from hq.neurons.space import NeuronSpace
from hq.probe.fidelity import FidelityMeasure, rank_change, relative_error
from hq.probe.survival import (
    STATISTICS,
    DegradedNeurons,
    activity_statistics,
    features,
    fitted_weights,
    predict,
    weight_statistics,
)
from hq.stats.auroc import auroc, estimate_auroc, grouped_auroc_statistic
from hq.stats.intervals import Estimate, Statistic, estimate
from hq.tracing.traces import Traces

_MAGNITUDE = list(STATISTICS).index("magnitude")


@dataclass(frozen=True)
class SurvivalAnalysis:
    """The neurons of the reference, and their traces at other precisions."""

    rows: Rows
    neurons: NeuronSet
    ffns: FFNs  # the checkpoint's, as they are stored
    reference: Traces
    variants: Mapping[str, Traces]

    def __post_init__(self) -> None:
        self.require(list(self.variants))

    @staticmethod
    def require(precisions: Sequence[str]) -> None:
        """Raises HQError if there are fewer than two precisions besides the reference."""
        if len(precisions) < 2:
            raise HQError(
                "Survival at a precision is predicted from other precisions: give two or more "
                "besides fp16, as --precisions fp16,int8,nf4."
            )

    def tables(self) -> dict[str, list[Row]]:
        """Return all rows by table."""
        tables: dict[str, list[Row]] = {"survival": [], "statistics": []}
        for target, errors in self._errors().items():
            degraded = [
                DegradedNeurons.of(errors[precision], self._space) for precision in self.variants
            ]
            scores = predict(self._features, degraded, self._space)
            tables["survival"] += [
                self._row(precision, target, scores[i], degraded[i])
                for i, precision in enumerate(self.variants)
            ]
            tables["statistics"] += self._statistics(target, degraded)
        return tables

    @property
    def _space(self) -> NeuronSpace:
        return self.neurons.model.space

    @cached_property
    def _features(self) -> Float[np.ndarray, "p statistic"]:
        layers = [weight_statistics(ffn) for ffn in self.ffns]
        of_weights = {name: np.concatenate([layer[name] for layer in layers]) for name in layers[0]}
        observed = self._contributions(self.reference)[self.rows.folds % 2 == 0]
        return features(of_weights | activity_statistics(observed), self._space)

    def _errors(self) -> dict[str, dict[str, Float[np.ndarray, " p"]]]:
        """The error of each neuron on the samples of odd folds, by target and precision."""
        measured, everyone = self._measured, np.arange(self.neurons.model.n_neurons)
        before = self._contributions(self.reference)[measured]
        errors: dict[str, dict[str, Float[np.ndarray, " p"]]] = {"error": {}, "rank": {}}
        for precision, traces in self.variants.items():
            after = self._contributions(traces)[measured]
            missing = list(traces.info.missing)
            change = rank_change(before, after, everyone, self._space)
            for target, measure in (("error", relative_error(before, after)), ("rank", change)):
                values = _value(measure, len(measured))
                values[missing] = np.nan  # neither preserved nor degraded
                errors[target][precision] = values
        return errors

    @property
    def _measured(self) -> Int[np.ndarray, " row"]:
        return np.flatnonzero(self.rows.folds % 2 == 1)

    def _contributions(self, traces: Traces) -> Float[np.ndarray, "n p"]:
        return traces.matrix("contribution", self.neurons.tokens)

    def _row(
        self, precision: str, target: str, scores: Float[np.ndarray, " p"], neurons: DegradedNeurons
    ) -> Survival:
        magnitude, layers = self._features[:, _MAGNITUDE], self.neurons.model.n_layers
        first, second = (self._auroc(v, neurons, neurons.defined) for v in (scores, -magnitude))
        among_loud = self._auroc(scores, neurons, neurons.defined & (magnitude > 0))
        chosen = self.neurons.flat[neurons.defined[self.neurons.flat]]
        return Survival(
            precision=precision,
            target=target,
            layers=layers,
            n=int(neurons.defined.sum()),
            hurt=int(neurons.degraded.sum()),
            texts=len(self._measured),
            auroc=estimate(first, layers, name="AUROC", scale="logit"),
            auroc_small=estimate(second, layers, name="AUROC", scale="logit"),
            gain=estimate(lambda w: first(w) - second(w), layers, name="gain of AUROC"),
            auroc_loud=estimate(among_loud, layers, name="AUROC", scale="logit"),
            probe=len(chosen),
            probe_hurt=int(neurons.degraded[chosen].sum()),
            probe_auroc=self._probe(scores, neurons, chosen),
        )

    def _auroc(
        self,
        scores: Float[np.ndarray, " p"],
        neurons: DegradedNeurons,
        chosen: Bool[np.ndarray, " p"],
    ) -> Statistic:
        """The AUROC over some neurons, as a function of the weights of layers."""
        layer = self._space.locate(np.flatnonzero(chosen)).layer
        degraded = neurons.degraded[chosen].astype(np.int64)
        return grouped_auroc_statistic(scores[chosen], degraded, layer)

    def _probe(
        self,
        scores: Float[np.ndarray, " p"],
        neurons: DegradedNeurons,
        chosen: Int[np.ndarray, " k"],
    ) -> Estimate | None:
        degraded = neurons.degraded[chosen]
        if min(degraded.sum(), (~degraded).sum()) < 2:
            return None
        return estimate_auroc(scores[chosen], degraded)

    def _statistics(self, target: str, degraded: list[DegradedNeurons]) -> list[OfStatistic]:
        fitted = fitted_weights(self._features, degraded)
        rows: list[OfStatistic] = []
        for k, (name, meaning) in enumerate(STATISTICS.items()):
            alone = [auroc(self._features[d.defined, k], d.degraded[d.defined]) for d in degraded]
            rows.append(
                OfStatistic(
                    target=target,
                    statistic=name,
                    meaning=meaning,
                    weight=float(fitted[k]),
                    auroc=float(np.mean(alone)),
                    auroc_least=min(alone),
                    auroc_most=max(alone),
                )
            )
        return rows


def _value(measure: FidelityMeasure, n: int) -> Float[np.ndarray, " p"]:
    """The measure of each neuron over all texts."""
    values: Float[np.ndarray, " p"] = measure(np.ones((1, n)))[0]
    return values
