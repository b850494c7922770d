"""Rows of the tables effects, sets and quantiles at one precision.

Cliff's delta (1993, "Dominance statistics") is 2·AUROC − 1, so its interval is that of the AUROC:
jackknife over units, on the logit scale.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from harness.experiments.distributions.tables import EffectRow, QuantileRow, SetRow
from harness.stages.identify import Rows
from harness.tables.schema import Row
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.probe.held_out import mean_over_folds, require_selections
from hq.probe.regular import RegularNeurons
from hq.stats.auroc import auroc_statistic, estimate_auroc
from hq.stats.columns import column_ranks, ranked_aurocs
from hq.stats.intervals import Estimate, Statistic, Weights, estimate
from hq.tracing.traces import Traces, magnitudes

_LABELS = ("right", "hallucinated")
_QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


@dataclass(frozen=True)
class EffectAnalysis:
    """The probes of the reference, and traces at one precision."""

    probes: CrossFit
    rows: Rows
    reference: Traces  # regular neurons match magnitudes at the reference
    traces: Traces
    draws: int
    seed: int

    def __post_init__(self) -> None:
        require_selections(self.probes)
        info = self.traces.info
        self.neurons.require_present({*info.missing, *info.unmatched}, info.precision)

    @property
    def neurons(self) -> NeuronSet:
        """The FP16 set."""
        return self.probes.neurons

    def tables(self) -> dict[str, list[Row]]:
        """Return all rows of this precision by table."""
        return {
            "effects": [*self._effects()],
            "sets": [*self._sets()],
            "quantiles": [*self._quantiles()],
        }

    def _effects(self) -> list[EffectRow]:
        y, rows = self.rows.y, []
        for j, (neuron, flat) in enumerate(
            zip(self.neurons.positive, self.neurons.flat_positive, strict=True)
        ):
            cett = self._cett(int(flat))
            area = estimate_auroc(cett, y, self.rows.units)
            ends = (2 * end - 1 for end in (area.value, area.low, area.high))
            value, low, high = ends
            rows.append(
                EffectRow(
                    precision=self.traces.info.precision,
                    layer=neuron.layer,
                    expert=neuron.expert,
                    index=neuron.index,
                    weight=neuron.weight,
                    median_right=float(np.median(cett[y == 0])),
                    median_hallucinated=float(np.median(cett[y == 1])),
                    delta=Estimate(value=value, low=low, high=high, n=area.n),
                    matched=Estimate.of_draws(self._deltas(self._matched[:, j])),
                )
            )
        return rows

    def _sets(self) -> list[SetRow]:
        y, units, h = self.rows.y, self.rows.units, self.neurons.flat_positive
        n, counted = len(y), len(np.unique(units))
        common = {"precision": self.traces.info.precision, "n": n, "units": counted}
        signed = mean_over_folds([h], [np.arange(n)], self._delta)
        unsigned = mean_over_folds([h], [np.arange(n)], self._magnitude)
        by_fold = [fold.probe.flat_positive for fold in self.probes.folds]
        held_out = mean_over_folds(by_fold, self._rows_of_folds, self._delta)
        of_h = SetRow(
            **common,
            neurons="h",
            size=len(h),
            delta=estimate(signed, n, units, "mean of Cliff's delta"),
            magnitude=estimate(unsigned, n, units, "mean of |delta|"),
            share=None,
            held_out=estimate(held_out, n, units, "mean of Cliff's delta"),
        )
        rows = [of_h]
        for name, drawn in (("matched", self._matched), ("random", self._random)):
            deltas = self._deltas(drawn.ravel()).reshape(drawn.shape)
            sizes = np.abs(deltas).mean(axis=1)
            reached = (sizes >= of_h.magnitude.value).sum()
            rows.append(
                SetRow(
                    **common,
                    neurons=name,
                    size=len(h),
                    delta=Estimate.of_draws(deltas.mean(axis=1)),
                    magnitude=Estimate.of_draws(sizes),
                    share=float((1 + reached) / (1 + len(sizes))),
                    held_out=self._held_out_of_draws(by_fold) if name == "matched" else None,
                )
            )
        return rows

    def _quantiles(self) -> list[QuantileRow]:
        sets = {"h": self.neurons.flat_positive, "matched": self._matched, "random": self._random}
        rows = []
        for name, flats in sets.items():
            cett = self._columns(np.unique(flats))
            means = cett.mean(axis=0)
            relative = cett[:, means > 0] / means[means > 0]  # a silent neuron has none
            for label, meaning in enumerate(_LABELS):
                values = relative[self.rows.y == label]
                rows.append(
                    QuantileRow(
                        precision=self.traces.info.precision,
                        neurons=name,
                        label=meaning,
                        n=len(values),
                        mean=float(values.mean()),
                        **dict(
                            zip(
                                _QUANTILES,
                                np.quantile(values, list(_QUANTILES.values())).tolist(),
                                strict=True,
                            )
                        ),
                    )
                )
        return rows

    def _held_out_of_draws(self, by_fold: list[Int[np.ndarray, " k"]]) -> Estimate:
        """Mean delta, on each fold, of neurons that match those of the fold's probe."""
        totals = np.zeros(self.draws)
        for flats, rows in zip(by_fold, self._rows_of_folds, strict=True):
            drawn = self._regular.matched(flats, self.draws, self.seed)
            totals += self._deltas(drawn.ravel(), rows).reshape(drawn.shape).sum(axis=1)
        return Estimate.of_draws(totals / sum(map(len, by_fold)))

    def _delta(self, flat: int, rows: Int[np.ndarray, " m"]) -> Statistic:
        area = auroc_statistic(self._cett(flat)[rows], self.rows.y[rows])

        def delta(weights: Weights) -> Float[np.ndarray, " weightings"]:
            return 2 * area(weights) - 1

        return delta

    def _magnitude(self, flat: int, rows: Int[np.ndarray, " m"]) -> Statistic:
        signed = self._delta(flat, rows)

        def magnitude(weights: Weights) -> Float[np.ndarray, " weightings"]:
            return np.abs(signed(weights))

        return magnitude

    def _deltas(
        self, flats: Int[np.ndarray, " k"], rows: Int[np.ndarray, " m"] | None = None
    ) -> Float[np.ndarray, " k"]:
        """Cliff's delta of many neurons, on all samples or on some."""
        chosen = np.arange(len(self.rows.y)) if rows is None else rows
        distinct, position = np.unique(flats, return_inverse=True)
        ranks = column_ranks(self._columns(distinct)[chosen])
        deltas: Float[np.ndarray, " k"] = 2 * ranked_aurocs(ranks, self.rows.y[chosen][None])[0] - 1
        return deltas[position]

    def _columns(self, flats: Int[np.ndarray, " k"]) -> Float[np.ndarray, "n k"]:
        return np.asarray(self.traces.matrix(self.neurons.cett, self.neurons.tokens)[:, flats])

    def _cett(self, flat: int) -> Float[np.ndarray, " n"]:
        return self._of_selected[flat]

    @cached_property
    def _of_selected(self) -> dict[int, Float[np.ndarray, " n"]]:
        """CETT of the H-Neurons, and of those of the folds."""
        fits = (self.neurons, *(fold.probe for fold in self.probes.folds))
        flats = np.unique(np.concatenate([fit.flat_positive for fit in fits]))
        columns = self._columns(flats).astype(np.float64)
        return dict(zip(flats.tolist(), columns.T, strict=True))

    @property
    def _rows_of_folds(self) -> list[Int[np.ndarray, " m"]]:
        return [np.flatnonzero(self.rows.folds == fold) for fold in range(len(self.probes.folds))]

    @cached_property
    def _matched(self) -> Int[np.ndarray, "draws k"]:
        return self._regular.matched(self.neurons.flat_positive, self.draws, self.seed)

    @cached_property
    def _random(self) -> Int[np.ndarray, "draws k"]:
        return self._regular.random(len(self.neurons.positive), self.draws, self.seed)

    @cached_property
    def _regular(self) -> RegularNeurons:
        everyone = np.arange(len(self.rows.y))
        size = magnitudes(self.reference, self.neurons.tokens, everyone)
        return RegularNeurons(self.neurons, size, self.traces.info.missing)
