"""Comparison of one precision with FP16, as rows of the result tables.

Three results are separate: the frozen FP16 probe at the precision, the same probe with a threshold
transferred without labels, and neurons re-identified at the precision.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from harness.experiments.detect.alarms import alarms
from harness.experiments.detect.design import text_scores
from harness.experiments.detect.makings import Changes, FurtherMaking, over_makings
from harness.experiments.detect.tables import (
    MARGIN,
    Alarm,
    AlignmentRow,
    ControlRow,
    Detection,
    Fidelity,
    MakingRow,
    ModelRow,
    Selection,
)
from harness.stages import mapping
from harness.stages.alarms import Scores
from harness.stages.identify import Rows, StabilitySummary, require_same_tokens
from harness.stages.samples import Sample
from harness.stages.uncertainty import Uncertainty, perplexity
from harness.studies.study import CompareSection
from harness.tables.schema import Row
from hq.errors import HQError
from hq.models.audit import AuditRow
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.controls import (
    magnitude_ratio,
    matched_neurons,
    outliers,
    random_neurons,
)
from hq.probe.cross_fit import CrossFit
from hq.probe.fidelity import (
    FidelityMeasure,
    correlation,
    of_columns,
    over_draws,
    over_questions,
    rank_change,
    relative_error,
)
from hq.probe.identify import THRESHOLD
from hq.probe.overlap import expected_jaccard, jaccard, overlap_p_value
from hq.probe.stacking import CrossFittedScores, for_folds, stacked
from hq.probe.text import TEXT_CONTROLS
from hq.stats.auroc import auroc, estimate_auroc, estimate_auroc_difference
from hq.stats.equivalence import decide
from hq.stats.intervals import Estimate, estimate, estimate_rate, smallest_detectable
from hq.stats.thresholds import estimate_f1
from hq.tracing.traces import Traces, magnitudes

MIB = 2**20
ANY = 1000  # neurons that represent the whole model
Draw = Callable[[NeuronSet], Int[np.ndarray, "draws k"]]


@dataclass(frozen=True)
class Comparison:
    """Traces and cross-fitted probes of a precision and of the reference, on the same samples.

    Every decision value is of a probe that has not seen the sample's fold. AUROCs compare samples
    of one fold, which have the same probe. Intervals are jackknife intervals over units.
    """

    samples: list[Sample]
    probes: CrossFit  # identified at the reference
    reference: Traces
    variant: Traces
    reidentified: CrossFit  # identified at the variant
    uncertainty: Uncertainty | None  # None if only traces are given
    section: CompareSection
    seed: int
    text_components: Sequence[str] | None = None  # of the held-out texts; None if all differ
    # Text-only controls, which are equal at all precisions; None if they are not computed yet.
    texts: Mapping[str, CrossFittedScores] | None = None
    further: Sequence[FurtherMaking] = ()  # makings of the variant after the first

    def __post_init__(self) -> None:
        variants = (self.variant, *(making.traces for making in self.further))
        for traces in (self.reference, *variants):
            require_same_tokens(traces, self.samples)
            _require_model(traces, self.neurons)
        for probe in (self.neurons, *(fold.probe for fold in self.probes.folds)):
            for info in (traces.info for traces in variants):
                probe.require_present(info.unmatched, info.precision)
            if THRESHOLD not in probe.thresholds:
                raise HQError(
                    f"A probe has no threshold {THRESHOLD!r}: identify the neurons again with "
                    "`hq identify`."
                )

    @property
    def neurons(self) -> NeuronSet:
        """The FP16 probe that is fitted on all samples."""
        return self.probes.neurons

    def tables(self) -> dict[str, list[Row]]:
        """Return all rows of this precision by table."""
        return {
            "detection": [self.detection()],
            "makings": [*self.makings()],
            "spread": [*self._changes.spread(self.variant.info.precision, self._rows)],
            "alarms": [*self.alarms()],
            "controls": [*self.controls()],
            "fidelity": [*self.fidelity()],
            "model": [] if self.uncertainty is None else [self.model(self.uncertainty)],
        }

    def detection(self) -> Detection:
        """Return the three results: frozen, with transferred thresholds, and re-identified."""
        y, units = self._rows.y, self._rows.units
        before, after = self._before.out_of_fold, self._after.out_of_fold
        thresholds = [fold.probe.thresholds[THRESHOLD] for fold in self.probes.folds]
        frozen = np.array(thresholds)[self._rows.folds]
        moved = self._before.transfer(np.array(thresholds), self._after, self._rows.folds)
        transferred = moved[self._rows.folds]
        again = self.reidentified.scores(self._variant_cett, self._rows.folds)
        decisive = self._changes.decisive
        flat, flat_again = self.neurons.flat, self.reidentified.neurons.flat
        common = len(np.intersect1d(flat, flat_again))
        sizes = len(flat), len(flat_again), self.neurons.model.n_neurons
        return Detection(
            precision=self.variant.info.precision,
            compute=self.variant.info.compute,
            n=len(y),
            units=len(np.unique(units)),
            seed=self.seed,
            neurons=sizes[0],
            h_neurons=len(self.neurons.positive),
            per_mille=1000 * sizes[0] / sizes[2],
            auroc=estimate_auroc(after, y, *self._draw),
            auroc_change=self._changes.each[0],
            detectable=smallest_detectable(decisive) if decisive.se else None,
            verdict=decide(decisive, MARGIN).verdict,
            auroc_h=estimate_auroc(self._h_only, y, *self._draw),
            accuracy=estimate_rate((after >= frozen) == (y == 1), units),
            f1=estimate_f1(after, y, frozen, units),
            accuracy_transferred=estimate_rate((after >= transferred) == (y == 1), units),
            f1_transferred=estimate_f1(after, y, transferred, units),
            flips=estimate_rate((after >= frozen) != (before >= frozen), units),
            auroc_again=estimate_auroc(again, y, *self._draw),
            neurons_again=sizes[1],
            common=common,
            jaccard=jaccard(flat, flat_again),
            jaccard_chance=expected_jaccard(*sizes),
            overlap_p=overlap_p_value(common, *sizes),
        )

    def makings(self) -> Iterator[MakingRow]:
        """Yield the result at each making; none if there is only one."""
        losses = [self.uncertainty, *(making.uncertainty for making in self.further)]
        if len(losses) == 1:
            return
        for making, (scores, u) in enumerate(zip(self._of_makings, losses, strict=True)):
            assert u is not None  # there are further makings only in a study
            perplexity_, divergence = self._losses(u)
            yield MakingRow(
                precision=self.variant.info.precision,
                making=making,
                n=len(scores),
                units=len(np.unique(self._rows.units)),
                auroc=estimate_auroc(scores, self._rows.y, *self._draw),
                auroc_change=self._changes.each[making],
                perplexity=perplexity_,
                kl=divergence,
            )

    def alarms(self) -> Iterator[Alarm]:
        """Yield the rates of thresholds that promise a false-alarm rate."""
        return alarms(
            self.samples, self._rows, self._before, self._after, self.variant.info.precision
        )

    def controls(self) -> list[ControlRow]:
        """Return probes on random and matched neurons, on other features, and on texts."""
        return [
            self._drawn("random", self._random_like),
            self._drawn("matched", self._matched_like),
            *(self._baseline(name, values) for name, values in self._baselines.items()),
            *(self._text_row(name) for name in TEXT_CONTROLS),
        ]

    def fidelity(self) -> Iterator[Fidelity]:
        """Yield the change of contributions of probe, H-, matched and arbitrary neurons."""
        groups: dict[str, Int[np.ndarray, "*draws k"]] = {
            "probe": self.neurons.flat,
            "h_neurons": self.neurons.flat_positive,
            "matched": self._matched_like(self.neurons),
            "any": self._any,
        }
        # Ranks take seconds, so all groups are measured together.
        flat = np.unique(np.concatenate([neurons.ravel() for neurons in groups.values()]))
        span = self.neurons.tokens
        a, b = (t.matrix("contribution", span) for t in (self.reference, self.variant))
        measures = {
            "correlation": correlation(a[:, flat], b[:, flat]),
            "relative_error": relative_error(a[:, flat], b[:, flat]),
            "rank_change": rank_change(a, b, flat, self.neurons.model.space),
        }
        for group, neurons in groups.items():
            yield self._fidelity(group, neurons, np.searchsorted(flat, neurons), measures)

    def model(self, u: Uncertainty) -> ModelRow:
        """Return what ran, and how much its outputs differ from the reference's."""
        audit = self.variant.info.audit
        loss, divergence = self._losses(u)
        return ModelRow(
            precision=self.variant.info.precision,
            modules=_modules(audit),
            storage=storage(audit),
            bits_per_weight=sum(row.bits_per_weight * row.weights for row in audit)
            / sum(row.weights for row in audit),
            weights_mib=self.variant.info.weight_bytes / MIB,
            n=len(u.tokens),
            units=loss.n,
            perplexity=loss,
            kl=divergence,
        )

    def _losses(self, u: Uncertainty) -> tuple[Estimate, Estimate]:
        """Return perplexity and KL divergence on the held-out texts."""
        share = u.tokens / u.tokens.sum()
        groups = None if self.text_components is None else np.array(self.text_components)
        divergence = estimate(
            lambda w: w @ (u.kl * share) / (w @ share), len(share), groups, "KL divergence"
        )
        return perplexity(u.nll, u.tokens, groups), divergence

    def _fidelity(
        self,
        group: str,
        neurons: Int[np.ndarray, "*draws k"],
        columns: Int[np.ndarray, "*draws k"],
        measures: Mapping[str, FidelityMeasure],
    ) -> Fidelity:
        """Return a row of these neurons, or of draws of neurons, in these columns of measures."""
        n, units = len(self.samples), self._rows.units
        estimates = {
            name: over_questions(of_columns(measure, columns), n, name, units)
            if neurons.ndim == 1
            else over_draws(measure, n, name, columns)
            for name, measure in measures.items()
        }
        return Fidelity(
            precision=self.variant.info.precision,
            group=group,
            neurons=neurons.shape[-1],
            draws=1 if neurons.ndim == 1 else len(neurons),
            magnitude=magnitude_ratio(neurons, self.neurons.flat, self._magnitudes),
            n=n,
            units=len(np.unique(units)),
            seed=self.seed,
            **estimates,
        )

    def _drawn(self, name: str, draw: Draw) -> ControlRow:
        """Return the row of draws like each fold's probe, fitted on the other folds."""
        X, drawn = self._variant_cett.values, [draw(fold.probe) for fold in self.probes.folds]
        decisions = np.stack(
            [
                self._cross_fitted([X[:, of_fold[i]] for of_fold in drawn])
                for i in range(self.section.draws)
            ]
        )
        areas = np.array([auroc(row, self._rows.y, self._rows.folds) for row in decisions])
        return self._control(name, len(areas), Estimate.of_draws(areas), decisions, None)

    def _baseline(self, name: str, features: Float[np.ndarray, "n q"]) -> ControlRow:
        seen = [features] * len(self.probes.folds)
        decisions = self._cross_fitted(seen)
        return self._fitted(name, decisions, self._adds(decisions, seen))

    def _cross_fitted(self, seen: Sequence[Float[np.ndarray, "n q"]]) -> Float[np.ndarray, " n"]:
        """Return decision values out of fold; `seen` has the features for each fold."""
        return stacked(seen, self._rows.y, self._rows.folds)

    def _text_row(self, name: str) -> ControlRow:
        text = self._texts[name]
        seen = for_folds(text.out_of_fold, text.calibration)
        return self._fitted(name, text.out_of_fold, self._adds(text.out_of_fold, seen))

    def _fitted(self, name: str, decisions: Float[np.ndarray, " n"], adds: Estimate) -> ControlRow:
        area = estimate_auroc(decisions, self._rows.y, *self._draw)
        return self._control(name, 1, area, decisions, adds)

    def _adds(
        self, alone: Float[np.ndarray, " n"], seen: Sequence[Float[np.ndarray, "n q"]]
    ) -> Estimate:
        """Return the AUROC that the frozen probe's score adds to a control's features.

        `seen` has the control's features for each fold f, none of which depends on labels of f.
        """
        with_probe = []
        for fold, features in enumerate(seen):
            # Within a fold, a constant makes no difference, so all scores are centred.
            own = self._after.out_of_fold - self._after.means[fold]
            scores = np.where(self._rows.folds == fold, own, self._after.calibration[fold])
            with_probe.append(np.column_stack([features, scores]))
        both = self._cross_fitted(with_probe)
        return estimate_auroc_difference(both, alone, self._rows.y, *self._draw)

    def _control(
        self,
        name: str,
        draws: int,
        area: Estimate,
        decisions: Float[np.ndarray, "*draws n"],
        adds: Estimate | None,
    ) -> ControlRow:
        return ControlRow(
            precision=self.variant.info.precision,
            control=name,
            n=len(self._rows.y),
            units=len(np.unique(self._rows.units)),
            draws=draws,
            seed=self.seed,
            auroc=area,
            probe_minus_control=estimate_auroc_difference(
                self._after.out_of_fold, decisions, self._rows.y, *self._draw
            ),
            probe_adds=adds,
        )

    @property
    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Units and strata of all estimates of an AUROC."""
        return self._rows.units, self._rows.folds

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.samples)

    @cached_property
    def _variant_cett(self) -> Features:
        return self.variant.features(self.neurons.cett, self.neurons.tokens)

    @cached_property
    def _before(self) -> Scores:
        features = self.reference.features(self.neurons.cett, self.neurons.tokens)
        return Scores.of(self.probes, features, self._rows)

    @cached_property
    def _after(self) -> Scores:
        return Scores.of(self.probes, self._variant_cett, self._rows)

    @cached_property
    def _of_makings(self) -> list[Float[np.ndarray, " n"]]:
        """Out-of-fold decision values at each making."""
        cett, span = self.neurons.cett, self.neurons.tokens
        features = (making.traces.features(cett, span) for making in self.further)
        further = (self.probes.scores(of_making, self._rows.folds) for of_making in features)
        return [self._after.out_of_fold, *further]

    @cached_property
    def _changes(self) -> Changes:
        return over_makings(self._before.out_of_fold, self._of_makings, self._rows)

    @cached_property
    def _texts(self) -> Mapping[str, CrossFittedScores]:
        return text_scores(self.samples) if self.texts is None else self.texts

    @property
    def _h_only(self) -> Float[np.ndarray, " n"]:
        """Scores by the positive weights only."""
        values = np.empty(len(self.samples))
        for fold, of_fold in enumerate(self.probes.folds):
            probe = of_fold.probe
            h_neurons = probe.model_copy(update={"neurons": probe.positive})
            rows = np.flatnonzero(self._rows.folds == fold)
            values[rows] = h_neurons.score(self._variant_cett)[rows]
        return values

    @cached_property
    def _magnitudes(self) -> Float[np.ndarray, " p"]:
        """Mean contribution of each neuron at FP16."""
        return magnitudes(self.reference, self.neurons.tokens, np.arange(len(self.samples)))

    def _random_like(self, probe: NeuronSet) -> Int[np.ndarray, "draws k"]:
        """Draw as many neurons as a probe has, without its own and super-neurons."""
        flat, extreme = probe.flat, np.flatnonzero(outliers(self._magnitudes))
        exclude = np.unique(np.concatenate([flat, extreme, self._never_drawn(flat)]))
        draws, p = self.section.draws, probe.model.n_neurons
        return random_neurons(len(flat), p, draws, self.seed, exclude)

    def _matched_like(self, probe: NeuronSet) -> Int[np.ndarray, "draws k"]:
        """Draw neurons that match a probe's in layer and magnitude, without its own."""
        flat, space, draws = probe.flat, probe.model.space, self.section.draws
        exclude = self._never_drawn(flat)
        return matched_neurons(flat, self._magnitudes, space, draws, self.seed, exclude=exclude)

    def _never_drawn(self, flat: Int[np.ndarray, " k"]) -> Int[np.ndarray, " m"]:
        """Missing neurons, and those of the set for use that are not among these.

        The set for use has neurons that separate all samples, those of any fold as well.
        """
        missing = np.array(self.variant.info.missing, dtype=np.int64)
        return np.union1d(missing, np.setdiff1d(self.neurons.flat, flat))

    @property
    def _any(self) -> Int[np.ndarray, " k"]:
        """Neurons that depend only on the seed, so that they are the same for another probe."""
        p, missing = self.neurons.model.n_neurons, self.variant.info.missing
        return random_neurons(min(ANY, p - len(missing)), p, 1, self.seed, missing).ravel()

    @property
    def _baselines(self) -> dict[str, Float[np.ndarray, "n q"]]:
        lengths = [[len(s.response_ids), len(s.text)] for s in self.samples]
        relations = np.array([s.relation for s in self.samples])
        baselines = {
            "length": np.array(lengths, dtype=float),
            "relation": (relations[:, None] == np.unique(relations)).astype(float),
        }
        if self.uncertainty is not None:
            baselines["entropy"] = self.uncertainty.entropy[:, None]
        return baselines


def selection(precision: str, probes: CrossFit, stability: StabilitySummary) -> Selection:
    """Return how the neurons of a precision were selected."""
    neurons = probes.neurons
    folds = [set(fold.probe.flat.tolist()) for fold in probes.folds]
    pairs = [jaccard(np.array([*a]), np.array([*b])) for a, b in combinations(folds, 2)]
    sizes = [len(fold) for fold in folds]
    return Selection(
        precision=precision,
        rule=str(neurons.provenance["rule"]),
        C=float(neurons.provenance["C"]),
        cv_auroc=float(neurons.provenance["cv_auroc"]),
        neurons=len(neurons.neurons),
        fewest=min(sizes),
        most=max(sizes),
        in_all_folds=len(set.intersection(set(neurons.flat.tolist()), *folds)),
        fold_jaccard=float(np.mean(pairs)),
        subsamples=stability.subsamples,
        selected=stability.mean_selected,
        stable=stability.stable,
        expected_false=stability.expected_false,
    )


def _modules(audit: Sequence[AuditRow]) -> str:
    counts: Counter[str] = Counter()
    for row in audit:
        counts[row.module] += row.count
    return " + ".join(f"{count} × {module}" for module, count in counts.items())


def storage(audit: Sequence[AuditRow]) -> str:
    """Return the storage type of the weights, or the number of each type per module."""
    if len({row.storage for row in audit}) == 1:
        return audit[0].storage
    types: dict[str, list[str]] = defaultdict(list)
    for row in audit:
        types[row.module].append(f"{row.count} × {row.storage}")
    return ", ".join(f"{module} {' + '.join(counted)}" for module, counted in types.items())


def _require_model(traces: Traces, neurons: NeuronSet) -> None:
    neurons.require(traces.info.model, f"The neuron set that {traces.folder} is compared by")


def alignment(folder: Path, precision: str, probe: Int[np.ndarray, " k"]) -> AlignmentRow:
    """Return the row of table `mapping`, from the output of stage `map`."""
    layers, neurons = mapping.rows(folder), mapping.read(folder)
    kinds = Counter(row.relation for row in layers)
    errors = np.array([row.error for row in layers])
    low, high = mapping.quantiles(neurons.permutation, neurons.factors)
    return AlignmentRow(
        precision=precision,
        layers=", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        bits=min(row.bits for row in layers),
        error=float(np.median(errors)),
        error_worst=float(errors.max()),
        worst=layers[errors.argmax()].layer,
        found=float(neurons.matched.mean()),
        probe=len(probe),
        probe_found=int(neurons.matched[probe].sum()),
        h_low=low,
        h_high=high,
    )
