"""Rows of the table transfer: the tuned model's probe on the base model's answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from harness.experiments.origin.tables import TransferRow
from harness.judges.base import Question
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from harness.stages.units import linking_keys
from harness.studies.study import REFERENCE
from hq.neurons.neuron_set import NeuronSet
from hq.probe.controls import fit_draws, matched_neurons, outliers, random_neurons
from hq.probe.cross_fit import CrossFit
from hq.probe.text import TEXT_CONTROLS, text_only
from hq.probe.unseen import MOST_FOLDS, Folds, fit_without, unseen_scores
from hq.stats.auroc import auroc, estimate_auroc, estimate_auroc_difference
from hq.stats.intervals import Estimate
from hq.tracing.traces import Traces, magnitudes

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Matrix = Float[np.ndarray, "n p"]


class Drawn(NamedTuple):
    """Draws of neurons, and a probe on each."""

    neurons: Int[np.ndarray, "draws k"]
    probes: "Sequence[Pipeline]"


@dataclass(frozen=True)
class Answers:
    """The answers of one model, and the probes that are cross-fitted on them."""

    samples: Sequence[Sample]
    questions: Mapping[str, Question]  # by id
    probes: CrossFit

    @cached_property
    def rows(self) -> Rows:
        """Labels, units and folds."""
        return Rows(self.samples)

    @property
    def every_row(self) -> Int[np.ndarray, " n"]:
        """The index of every answer."""
        return np.arange(len(self.samples))

    def keys(self, sample: Sample) -> list[tuple[str, str]]:
        """Return what links a sample to others: answer, entities and wording."""
        return linking_keys(self.questions[sample.id], sample.answer)


@dataclass(frozen=True)
class TransferAnalysis:
    """The tuned model's answers and traces at FP16, and the base model's at each precision."""

    tuned: Answers
    tuned_traces: Traces
    base: Answers
    base_traces: Mapping[str, Traces]  # by precision, the reference first
    draws: int
    seed: int

    def table(self) -> Iterator[TransferRow]:
        """Yield the rows of every precision."""
        for precision, traces in self.base_traces.items():
            used = [fit_without(self.tuned.probes, folds) for folds in set(self._related)]
            used += [fit_without(self.base.probes, folds) for folds in set(self._own_folds)]
            for fit in used:
                fit.require_present(traces.info.unmatched, precision)
            yield from self._of_precision(precision)
        yield from self._texts()

    def _of_precision(self, precision: str) -> Iterator[TransferRow]:
        for name, score in (("probe", self._probe), ("h-neurons", self._h_neurons)):
            values = self._scores(precision, score)
            before = self._scores(REFERENCE, score)
            minus = None if name == "probe" else self._difference(self._probe_at(precision), values)
            change = None if precision == REFERENCE else self._difference(values, before)
            yield self._row(precision, name, self._area(values), minus, change)
        for name, fits in self._control_fits.items():
            drawn = self._drawn(precision, fits)
            areas = np.array([auroc(row, self._y) for row in drawn])
            minus = self._difference(self._probe_at(precision), drawn)
            yield self._row(precision, name, Estimate.of_draws(areas), minus, draws=len(areas))
        again = self._refitted(precision)
        minus = self._difference(self._probe_at(precision), again)
        yield self._row(precision, "refit", self._area(again), minus)

    def _texts(self) -> Iterator[TransferRow]:
        """Yield the text-only controls, which do not depend on the precision."""
        samples, rows = self.base.samples, self.base.rows
        questions, answers = [s.question for s in samples], [s.text for s in samples]
        scores = {name: np.empty(len(samples)) for name in TEXT_CONTROLS}
        for fold in np.unique(rows.folds):
            test = rows.folds == fold
            fitted = text_only(questions, answers, rows.y, np.flatnonzero(~test))
            for name, values in fitted.items():
                scores[name][test] = values[test]
        folds, probe = rows.folds[self._kept], self._probe_at(REFERENCE)
        for name, values in scores.items():
            own = values[self._kept]
            area = estimate_auroc(own, self._y, self._units, folds)
            minus = estimate_auroc_difference(probe, own, self._y, self._units, folds)
            yield self._row(REFERENCE, name, area, minus)

    def _row(
        self,
        precision: str,
        name: str,
        area: Estimate,
        minus: Estimate | None,
        change: Estimate | None = None,
        draws: int = 1,
    ) -> TransferRow:
        return TransferRow(
            precision=precision,
            scores=name,
            n=len(self._kept),
            units=len(np.unique(self._units)),
            left_out=len(self.base.samples) - len(self._kept),
            draws=draws,
            seed=self.seed,
            auroc=area,
            probe_minus=minus,
            change=change,
        )

    @cached_property
    def _all_related(self) -> list[Folds]:
        """The folds of the tuned model's answers that each base answer is related to."""
        fold_of = {key: s.fold for s in self.tuned.samples for key in self.tuned.keys(s)}
        return [
            frozenset(fold_of[key] for key in self.base.keys(sample) if key in fold_of)
            for sample in self.base.samples
        ]

    @cached_property
    def _kept(self) -> Int[np.ndarray, " n"]:
        """Rows of the base answers that some fit has seen nothing related to."""
        related = self._all_related
        return np.array([i for i, folds in enumerate(related) if len(folds) <= MOST_FOLDS], int)

    @property
    def _related(self) -> list[Folds]:
        return [self._all_related[row] for row in self._kept]

    @property
    def _own_folds(self) -> list[Folds]:
        return [frozenset({self.base.samples[row].fold}) for row in self._kept]

    @property
    def _y(self) -> Int[np.ndarray, " n"]:
        y: Int[np.ndarray, " n"] = self.base.rows.y[self._kept]
        return y

    @property
    def _units(self) -> Shaped[np.ndarray, " n"]:
        units: Shaped[np.ndarray, " n"] = self.base.rows.units[self._kept]
        return units

    def _matrix(self, precision: str) -> Matrix:
        """Return CETT of all neurons on all answers of the base model, mapped from its file."""
        neurons = self.tuned.probes.neurons
        return self.base_traces[precision].matrix(neurons.cett, neurons.tokens)

    def _columns(self, X: Matrix, columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, "n k"]:
        """Return some neurons on the kept answers, in float64."""
        values: Float[np.ndarray, "n k"] = X[:, columns][self._kept].astype(np.float64)
        return values

    def _area(self, scores: Float[np.ndarray, " n"]) -> Estimate:
        return estimate_auroc(scores, self._y, self._units)

    def _difference(
        self, first: Float[np.ndarray, " n"], second: Float[np.ndarray, "*draws n"]
    ) -> Estimate:
        return estimate_auroc_difference(first, second, self._y, self._units)

    def _scores(
        self, precision: str, score: Callable[[NeuronSet, Matrix], Float[np.ndarray, " n"]]
    ) -> Float[np.ndarray, " n"]:
        X = self._matrix(precision)

        def decisions(folds: Folds) -> Float[np.ndarray, " n"]:
            return score(fit_without(self.tuned.probes, folds), X)

        return unseen_scores(decisions, self._related)

    def _probe(self, fit: NeuronSet, X: Matrix) -> Float[np.ndarray, " n"]:
        return fit.score_unchecked(self._columns(X, fit.flat))

    def _h_neurons(self, fit: NeuronSet, X: Matrix) -> Float[np.ndarray, " n"]:
        return self._probe(fit.model_copy(update={"neurons": fit.positive}), X)

    def _probe_at(self, precision: str) -> Float[np.ndarray, " n"]:
        return self._scores(precision, self._probe)

    def _refitted(self, precision: str) -> Float[np.ndarray, " n"]:
        X = self._matrix(precision)

        def decisions(folds: Folds) -> Float[np.ndarray, " n"]:
            return self._probe(fit_without(self.base.probes, folds), X)

        return unseen_scores(decisions, self._own_folds)

    def _drawn(self, precision: str, fits: Mapping[Folds, Drawn]) -> Float[np.ndarray, "draws n"]:
        """Return the scores of each draw of neurons."""
        X = self._matrix(precision)
        decisions = {
            folds: np.stack(
                [
                    probe.decision_function(self._columns(X, columns))
                    for probe, columns in zip(fit.probes, fit.neurons, strict=True)
                ]
            )
            for folds, fit in fits.items()
        }
        return np.stack(
            [
                unseen_scores({f: d[draw] for f, d in decisions.items()}.__getitem__, self._related)
                for draw in range(self.draws)
            ]
        )

    @cached_property
    def _control_fits(self) -> dict[str, dict[Folds, Drawn]]:
        """Probes on draws of neurons, fitted on the tuned model's answers without some folds."""
        rows, neurons = self.tuned.rows, self.tuned.probes.neurons
        X = self.tuned_traces.matrix(neurons.cett, neurons.tokens)
        fits: dict[str, dict[Folds, Drawn]] = {"random": {}, "matched": {}}
        for folds in dict.fromkeys(self._related):
            fit = fit_without(self.tuned.probes, folds)
            seen = ~np.isin(rows.folds, list(folds))
            for name, draw in (("random", self._random_like), ("matched", self._matched_like)):
                drawn = draw(fit)
                fits[name][folds] = Drawn(drawn, fit_draws(X[seen], rows.y[seen], drawn))
        return fits

    @cached_property
    def _magnitudes(self) -> Float[np.ndarray, " p"]:
        neurons, rows = self.tuned.probes.neurons, self.tuned.every_row
        return magnitudes(self.tuned_traces, neurons.tokens, rows)

    def _random_like(self, fit: NeuronSet) -> Int[np.ndarray, "draws k"]:
        extreme = np.flatnonzero(outliers(self._magnitudes))
        exclude = np.unique(np.concatenate([fit.flat, extreme, self._never_drawn(fit)]))
        return random_neurons(len(fit.flat), fit.model.n_neurons, self.draws, self.seed, exclude)

    def _matched_like(self, fit: NeuronSet) -> Int[np.ndarray, "draws k"]:
        exclude = self._never_drawn(fit)
        return matched_neurons(
            fit.flat, self._magnitudes, fit.model.space, self.draws, self.seed, exclude=exclude
        )

    def _never_drawn(self, fit: NeuronSet) -> Int[np.ndarray, " m"]:
        """Neurons that a precision lacks, and those of the set for use that are not the fit's."""
        missing = [np.array(t.info.missing, dtype=np.int64) for t in self.base_traces.values()]
        others = np.setdiff1d(self.tuned.probes.neurons.flat, fit.flat)
        return np.unique(np.concatenate([*missing, others]))
