"""Repair of the probes of all folds at a precision, on texts of other folds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from harness.experiments.drift.tables import RepairRow
from harness.stages.alarms import DomainAnswers, Scores, domain_of
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.probe.repair import LEAST_TEXTS, REPAIRS, Repair, Values
from hq.stats.auroc import auroc_statistic
from hq.stats.intervals import Estimate, from_jackknife, jackknife
from hq.stats.thresholds import match_quantile

TEXTS = (16, 64, 256)
"""Numbers of texts, in addition to all texts of other folds."""
DRAWS = 5


def unrepaired(neurons: NeuronSet, _reference: Values, _new: Values) -> NeuronSet:
    """Return the set itself: only the threshold follows the texts."""
    return neurons


METHODS: dict[str, Repair] = {"none": unrepaired, **REPAIRS}


class _Repaired(NamedTuple):
    """Decisions of one draw of texts, out of fold."""

    scores: Float[np.ndarray, " n"]
    flags: Bool[np.ndarray, " n"]  # by the thresholds set at the reference
    matched: Bool[np.ndarray, " n"]  # by those at the same quantile


class _Area(NamedTuple):
    """An AUROC, and the AUROCs without each unit."""

    value: float
    left_out: Float[np.ndarray, " unit"]


@dataclass(frozen=True, eq=False)
class RepairAnalysis:
    """The probes of a reference at another precision, where they are repaired."""

    samples: Sequence[Sample]
    rows: Rows
    probes: CrossFit
    reference: Features
    variant: Features
    before: Scores  # of the probes at the reference
    after: Scores  # of the probes at the variant
    again: Scores  # of the probes identified at the variant, at the variant
    promised: float
    seed: int

    def table(self) -> Iterator[RepairRow]:
        """Yield a row per method and number of texts, and one with labels."""
        for method, repair in METHODS.items():
            for texts in self._doses:
                drawn = [self._repaired(repair, texts, draw) for draw in self._draws(texts)]
                yield self._row(
                    method,
                    texts or self._available,
                    [self._area(of_draw.scores) for of_draw in drawn],
                    np.mean([of_draw.flags for of_draw in drawn], axis=0),
                    np.mean([of_draw.matched for of_draw in drawn], axis=0),
                )
        thresholds = self._domain.thresholds(self.again, self.promised)
        flags = self.again.flags(thresholds, self.rows.folds).astype(float)
        areas = [self._area(self.again.out_of_fold)]
        yield self._row("labels", self._available, areas, flags, None)

    @property
    def _doses(self) -> tuple[int, ...]:
        """Numbers of texts; 0 for all."""
        return (*(texts for texts in TEXTS if LEAST_TEXTS <= texts < self._available), 0)

    @staticmethod
    def _draws(texts: int) -> range:
        return range(DRAWS if texts else 1)

    @cached_property
    def _available(self) -> int:
        """The fewest texts outside of a fold."""
        folds = self.rows.folds
        return int(len(folds) - np.bincount(folds).max())

    @cached_property
    def _domain(self) -> DomainAnswers:
        return domain_of(self.samples, self.rows)

    @cached_property
    def _thresholds(self) -> Float[np.ndarray, " fold"]:
        return self._domain.thresholds(self.before, self.promised)

    def _repaired(self, repair: Repair, texts: int, draw: int) -> _Repaired:
        """Repair the probe of each fold on texts outside of it, and apply it to the fold."""
        folds = self.rows.folds
        scores, matched = np.empty(len(folds)), np.zeros(len(folds), dtype=bool)
        for fold, of_fold in enumerate(self.probes.folds):
            probe, inside = of_fold.probe, np.flatnonzero(folds == fold)
            outside = self._texts(folds, fold, texts, draw)
            columns = probe.flat
            old, new = (
                features.values[np.ix_(outside, columns)].astype(np.float64)
                for features in (self.reference, self.variant)
            )
            repaired = repair(probe, old, new)
            own = self.variant.values[np.ix_(inside, columns)].astype(np.float64)
            scores[inside] = repaired.score_unchecked(own)
            at = match_quantile(
                float(self._thresholds[fold]),
                probe.score_unchecked(old),
                repaired.score_unchecked(new),
            )
            matched[inside] = scores[inside] >= at
        return _Repaired(scores, scores >= self._thresholds[folds], matched)

    def _texts(
        self, folds: Int[np.ndarray, " n"], fold: int, texts: int, draw: int
    ) -> Int[np.ndarray, " text"]:
        """Draw texts outside of a fold; a larger number contains a smaller one."""
        outside = np.flatnonzero(folds != fold)
        if not texts:
            return outside
        return np.random.default_rng((self.seed, fold, draw)).permutation(outside)[:texts]

    def _row(
        self,
        method: str,
        texts: int,
        areas: Sequence[_Area],
        flags: Float[np.ndarray, " n"],
        matched: Float[np.ndarray, " n"] | None,
    ) -> RepairRow:
        mean = _mean(areas)
        full, frozen = self._full, self._frozen
        lost = self._estimate(full.value - frozen.value, full.left_out - frozen.left_out)
        gain, gain_left_out = mean.value - frozen.value, mean.left_out - frozen.left_out
        restored = None
        if lost.low > 0:
            shares = gain_left_out / (full.left_out - frozen.left_out)
            restored = self._estimate(gain / lost.value, shares)
        domain, right, wrong = self._domain, self._domain.right, self._domain.wrong
        values = [area.value for area in areas]
        return RepairRow(
            precision=self.variant.precision,
            method=method,
            texts=texts,
            draws=len(areas),
            n=len(self.rows.y),
            units=len(self._sizes),
            auroc=from_jackknife(mean.value, mean.left_out, self._sizes, "logit"),
            deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
            lost=lost,
            gain=self._estimate(gain, gain_left_out),
            restored=restored,
            promised=self.promised,
            false_alarms=domain.rate(right, flags),
            false_alarms_matched=None if matched is None else domain.rate(right, matched),
            detected=domain.rate(wrong, flags),
            detected_matched=None if matched is None else domain.rate(wrong, matched),
        )

    def _estimate(self, value: float, left_out: Float[np.ndarray, " unit"]) -> Estimate:
        return from_jackknife(value, left_out, self._sizes)

    def _area(self, scores: Float[np.ndarray, " n"]) -> _Area:
        rows = self.rows
        statistic = auroc_statistic(scores, rows.y, rows.folds)
        return _Area(*jackknife(statistic, len(rows.y), rows.units, "AUROC")[:2])

    @cached_property
    def _full(self) -> _Area:
        return self._area(self.before.out_of_fold)

    @cached_property
    def _frozen(self) -> _Area:
        return self._area(self.after.out_of_fold)

    @cached_property
    def _sizes(self) -> Float[np.ndarray, " unit"]:
        return np.unique(self.rows.units, return_counts=True)[1].astype(np.float64)


def _mean(areas: Sequence[_Area]) -> _Area:
    left_out = np.mean([area.left_out for area in areas], axis=0)
    return _Area(float(np.mean([area.value for area in areas])), left_out)
