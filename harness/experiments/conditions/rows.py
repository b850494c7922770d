"""Rows of the tables of conditions at one precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import hypergeom

from harness.experiments.conditions.nodes import Aurocs, counted
from harness.experiments.conditions.section import ConditionsSection
from harness.experiments.conditions.tables import (
    ConditionsRow,
    CountsRow,
    HeldOutRow,
    ScenarioRow,
)
from harness.judges.text import normalise
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from harness.tables.schema import Row
from hq.errors import HQError
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.probe.held_out import mean_over_folds, require_selections
from hq.stats.auroc import auroc, auroc_statistic, estimate_auroc
from hq.stats.columns import ColumnEstimates
from hq.stats.intervals import Estimate, Statistic, estimate
from hq.stats.permutation import rank_p
from hq.tracing.traces import Traces


@dataclass(frozen=True)
class ConditionsAnalysis:
    """The probes of the reference, and every neuron's AUROCs at one precision."""

    probes: CrossFit
    rows: Rows
    traces: Traces
    other_rows: Rows
    other_traces: Traces
    aurocs: Aurocs
    section: ConditionsSection

    def __post_init__(self) -> None:
        require_selections(self.probes)
        for info in (self.traces.info, self.other_traces.info):
            self.neurons.require_present({*info.missing, *info.unmatched}, info.precision)

    @property
    def neurons(self) -> NeuronSet:
        """The FP16 set."""
        return self.probes.neurons

    def tables(self) -> dict[str, list[Row]]:
        """Return all rows of this precision by table."""
        return {
            "conditions": [*self._conditions()],
            "counts": [*self._counts()],
            "held_out": [self._held_out()],
        }

    @property
    def _precision(self) -> str:
        return self.traces.info.precision

    def _conditions(self) -> list[ConditionsRow]:
        neurons, first, second = self.neurons, self.aurocs.selection, self.aurocs.second
        tau, tau_cross = self.section.tau, self.section.tau_cross
        rows = []
        for neuron, flat in zip(neurons.positive, neurons.flat_positive.tolist(), strict=True):
            holds, shown = (
                (area[flat] > tau, cross[flat] > tau_cross)
                for area, cross in ((first.value, second.value), (first.low, second.low))
            )
            rows.append(
                ConditionsRow(
                    precision=self._precision,
                    layer=neuron.layer,
                    expert=neuron.expert,
                    index=neuron.index,
                    weight=neuron.weight,
                    folds=len(self._folds_with(flat)),
                    auroc=_estimate(first, flat, self.rows),
                    auroc_held_out=self._of_neuron_held_out[flat],
                    auroc_cross=_estimate(second, flat, self.other_rows),
                    holds=_named(*holds),
                    shown=_named(*shown),
                )
            )
        return rows

    def _counts(self) -> list[CountsRow]:
        first, second, chosen = (
            self.aurocs.selection,
            self.aurocs.second,
            self.neurons.flat_positive,
        )
        thresholds = self.section.thresholds
        everyone = counted(first.value, second.value, thresholds)
        shown = counted(first.low, second.low, thresholds)
        of_h = counted(first.value[chosen], second.value[chosen], thresholds)
        shown_of_h = counted(first.low[chosen], second.low[chosen], thresholds)
        held_out = np.array([-1.0 if e is None else e.value for e in self._held_out_in_order])
        of_h_held_out = counted(held_out, second.value[chosen], thresholds)
        h, p = len(chosen), len(first.value)
        rows = []
        for t, (tau, tau_cross) in enumerate(thresholds):
            chance = [Estimate.of_draws(draws.astype(float)) for draws in self.aurocs.chance[:, t]]
            both = np.array([everyone[2, t]], dtype=float)
            null = self.aurocs.chance[2, t][:, None].astype(float)
            third = int(everyone[1, t])
            rows.append(
                CountsRow(
                    precision=self._precision,
                    tau=tau,
                    tau_cross=tau_cross,
                    h_neurons=h,
                    h_second=int(of_h[0, t]),
                    h_third=int(of_h[1, t]),
                    h_all=int(of_h[2, t]),
                    h_held_out=int(of_h_held_out[2, t]),
                    h_shown=int(shown_of_h[2, t]),
                    neurons=p,
                    second=int(everyone[0, t]),
                    second_chance=chance[0],
                    third=third,
                    third_chance=chance[1],
                    both=int(everyone[2, t]),
                    both_chance=chance[2],
                    both_p=float(rank_p(both, null)[0]),
                    both_shown=int(shown[2, t]),
                    h_third_p=float(hypergeom.sf(int(of_h[1, t]) - 1, p, third, h)),
                )
            )
        return rows

    def _held_out(self) -> HeldOutRow:
        rows, other = self.rows, self.other_rows
        chosen = [fold.probe.flat_positive for fold in self.probes.folds]
        within = [np.flatnonzero(rows.folds == fold) for fold in range(len(chosen))]
        outside = [np.flatnonzero(rows.folds != fold) for fold in range(len(chosen))]
        everyone = [np.arange(len(other.y))] * len(chosen)
        selected_on = mean_over_folds(chosen, outside, self._area)
        held_out = mean_over_folds(chosen, within, self._area)
        cross = mean_over_folds(chosen, everyone, self._area_cross)
        areas = [
            auroc(self._cett(flat)[of_fold], rows.y[of_fold])
            for flats, of_fold in zip(chosen, within, strict=True)
            for flat in flats.tolist()
        ]
        n, units = len(rows.y), rows.units
        return HeldOutRow(
            precision=self._precision,
            selections=len(areas),
            auroc_selected_on=estimate(selected_on, n, units, "AUROC", "logit"),
            auroc_held_out=estimate(held_out, n, units, "AUROC", "logit"),
            optimism=estimate(lambda w: selected_on(w) - held_out(w), n, units, "optimism"),
            auroc_cross=estimate(cross, len(other.y), other.units, "AUROC", "logit"),
            above_tau=float((np.array(areas) > self.section.tau).mean()),
            all_neurons=float(self.aurocs.selection.value.mean()),
            all_neurons_cross=float(self.aurocs.second.value.mean()),
        )

    def _folds_with(self, flat: int) -> list[int]:
        """Return the folds whose probe has a positive weight for a neuron."""
        return [f for f, fold in enumerate(self.probes.folds) if flat in fold.probe.flat_positive]

    @property
    def _held_out_in_order(self) -> list[Estimate | None]:
        return [self._of_neuron_held_out[flat] for flat in self.neurons.flat_positive.tolist()]

    @cached_property
    def _of_neuron_held_out(self) -> dict[int, Estimate | None]:
        """AUROC of each H-Neuron within the folds that did not select it but whose probe has it."""
        estimates: dict[int, Estimate | None] = {}
        for flat in self.neurons.flat_positive.tolist():
            chosen = np.flatnonzero(np.isin(self.rows.folds, self._folds_with(flat)))
            y, units, folds = (
                values[chosen] for values in (self.rows.y, self.rows.units, self.rows.folds)
            )
            try:
                estimates[flat] = estimate_auroc(self._cett(flat)[chosen], y, units, folds)
            except HQError:  # no rows, or units too few for an interval
                estimates[flat] = None
        return estimates

    def _area(self, flat: int, rows: Int[np.ndarray, " m"]) -> Statistic:
        return auroc_statistic(self._cett(flat)[rows], self.rows.y[rows])

    def _area_cross(self, flat: int, rows: Int[np.ndarray, " m"]) -> Statistic:
        return auroc_statistic(self._selected[1][flat][rows], self.other_rows.y[rows])

    def _cett(self, flat: int) -> Float[np.ndarray, " n"]:
        return self._selected[0][flat]

    @cached_property
    def _selected(self) -> list[dict[int, Float[np.ndarray, " n"]]]:
        """CETT of the H-Neurons, and of those of the folds, in both scenarios."""
        fits = (self.neurons, *(fold.probe for fold in self.probes.folds))
        flats = np.unique(np.concatenate([fit.flat_positive for fit in fits]))
        columns = [
            traces.matrix(self.neurons.cett, self.neurons.tokens)[:, flats].astype(np.float64)
            for traces in (self.traces, self.other_traces)
        ]
        return [dict(zip(flats.tolist(), of.T, strict=True)) for of in columns]


def scenarios(studies: Sequence[tuple[str, Sequence[Sample]]]) -> list[ScenarioRow]:
    """Return a row per scenario: the one that selected the neurons, then the second one."""
    questions, answers = (
        [{normalise(getattr(sample, field)) for sample in samples} for _, samples in studies]
        for field in ("question", "answer")
    )
    return [
        ScenarioRow(
            scenario=name,
            role=role,
            n=len(samples),
            units=len({sample.unit for sample in samples}),
            relations=len({sample.relation for sample in samples}),
            same_questions=sum(normalise(s.question) in questions[1 - i] for s in samples),
            same_answers=sum(normalise(s.answer) in answers[1 - i] for s in samples),
        )
        for i, ((name, samples), role) in enumerate(
            zip(studies, ("selection", "second"), strict=True)
        )
    ]


def _estimate(estimates: ColumnEstimates, flat: int, rows: Rows) -> Estimate:
    value, low, high = (float(values[flat]) for values in estimates)
    return Estimate(value=value, low=low, high=high, n=len(np.unique(rows.units)))


def _named(second: bool, third: bool) -> str:
    """Name the conditions that hold; condition 1 holds for every H-Neuron."""
    return "+".join(["1", *(["2"] if second else []), *(["3"] if third else [])])
