"""Which neurons each precision hurts, and how well the FP16 model alone tells: rows of two tables.

Statistics of activity are of the training texts, errors of the test texts.
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
from hq.stats.bootstrap import (
    Estimate,
    Statistic,
    auroc,
    bootstrap,
    bootstrap_auroc,
    grouped_auroc_statistic,
)
from hq.tracing.traces import Traces

_MAGNITUDE = list(STATISTICS).index("magnitude")


@dataclass(frozen=True)
class Surviving:
    """A reference's neurons, and the same at other precisions."""

    rows: Rows
    neurons: NeuronSet
    ffns: FFNs  # the checkpoint's, as they are stored
    reference: Traces
    variants: Mapping[str, Traces]
    seed: int
    replicates: int

    def __post_init__(self) -> None:
        self.require(list(self.variants))

    @staticmethod
    def require(precisions: Sequence[str]) -> None:
        """Raises HQError for fewer than two precisions beside the reference."""
        if len(precisions) < 2:
            raise HQError(
                "Survival at a precision is predicted from others: name two or more beside fp16, "
                "as --precisions fp16,int8,nf4."
            )

    def tables(self) -> dict[str, list[Row]]:
        """All rows, by table."""
        found: dict[str, list[Row]] = {"survival": [], "statistics": []}
        for target, errors in self._errors().items():
            hurt = [
                DegradedNeurons.of(errors[precision], self._d_ff) for precision in self.variants
            ]
            scores = predict(self._features, hurt, self._d_ff)
            found["survival"] += [
                self._row(precision, target, scores[i], hurt[i])
                for i, precision in enumerate(self.variants)
            ]
            found["statistics"] += self._statistics(target, hurt)
        return found

    @property
    def _d_ff(self) -> int:
        return self.neurons.model.d_ff

    @cached_property
    def _features(self) -> Float[np.ndarray, "p statistic"]:
        layers = [weight_statistics(ffn) for ffn in self.ffns]
        of_weights = {name: np.concatenate([layer[name] for layer in layers]) for name in layers[0]}
        trained = self._contributions(self.reference)[self.rows.train]
        return features(of_weights | activity_statistics(trained), self._d_ff)

    def _errors(self) -> dict[str, dict[str, Float[np.ndarray, " p"]]]:
        """Every neuron's error on the test texts, by target and precision."""
        test, everyone = self.rows.test, np.arange(self.neurons.model.n_neurons)
        before = self._contributions(self.reference)[test]
        found: dict[str, dict[str, Float[np.ndarray, " p"]]] = {"error": {}, "rank": {}}
        for precision, traces in self.variants.items():
            after = self._contributions(traces)[test]
            missing = list(traces.info.missing)
            moved = rank_change(before, after, everyone, self._d_ff)
            for target, measure in (("error", relative_error(before, after)), ("rank", moved)):
                values = _value(measure, len(test))
                values[missing] = np.nan  # neither kept nor hurt
                found[target][precision] = values
        return found

    def _contributions(self, traces: Traces) -> Float[np.ndarray, "n p"]:
        return traces.matrix("contribution", self.neurons.tokens)

    def _row(
        self, precision: str, target: str, scores: Float[np.ndarray, " p"], hurt: DegradedNeurons
    ) -> Survival:
        magnitude, layers = self._features[:, _MAGNITUDE], self.neurons.model.n_layers
        first, second = (self._auroc(v, hurt, hurt.known) for v in (scores, -magnitude))
        loud = hurt.known & (magnitude > 0)
        chosen = self.neurons.flat[hurt.known[self.neurons.flat]]
        return Survival(
            precision=precision,
            target=target,
            layers=layers,
            n=int(hurt.known.sum()),
            hurt=int(hurt.worst.sum()),
            texts=len(self.rows.test),
            seed=self.seed,
            auroc=self._over_layers(first, layers),
            auroc_small=self._over_layers(second, layers),
            gain=self._over_layers(lambda w: first(w) - second(w), layers),
            auroc_loud=self._over_layers(self._auroc(scores, hurt, loud), layers),
            probe=len(chosen),
            probe_hurt=int(hurt.worst[chosen].sum()),
            probe_auroc=self._probe(scores, hurt, chosen),
        )

    def _auroc(
        self, scores: Float[np.ndarray, " p"], hurt: DegradedNeurons, chosen: Bool[np.ndarray, " p"]
    ) -> Statistic:
        """Of some neurons, over the weights of the layers."""
        layer = np.flatnonzero(chosen) // self._d_ff
        worst = hurt.worst[chosen].astype(np.int64)
        return grouped_auroc_statistic(scores[chosen], worst, layer)

    def _over_layers(self, statistic: Statistic, layers: int) -> Estimate:
        return bootstrap(statistic, layers, self.seed, self.replicates, name="AUROC")

    def _probe(
        self, scores: Float[np.ndarray, " p"], hurt: DegradedNeurons, chosen: Int[np.ndarray, " k"]
    ) -> Estimate | None:
        worst = hurt.worst[chosen]
        if min(worst.sum(), (~worst).sum()) < 2:
            return None
        return bootstrap_auroc(scores[chosen], worst, self.seed, self.replicates)

    def _statistics(self, target: str, hurt: list[DegradedNeurons]) -> list[OfStatistic]:
        fitted, found = fitted_weights(self._features, hurt), []
        for k, (name, meaning) in enumerate(STATISTICS.items()):
            alone = [auroc(self._features[h.known, k], h.worst[h.known]) for h in hurt]
            found.append(
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
        return found


def _value(measure: FidelityMeasure, n: int) -> Float[np.ndarray, " p"]:
    """Of every neuron, over all texts."""
    values: Float[np.ndarray, " p"] = measure(np.ones((1, n)))[0]
    return values
