"""Promised false-alarm rates: cross-fitted scores, and thresholds per domain.

A domain is one relation of the scenario, or `all`. The threshold for the answers of fold f is set
on right answers of all other folds, by probes that have seen neither the answer's fold nor f
(`hq.probe.cross_fit`), so the measured rates are of answers that neither the probe nor the
threshold has seen. A precision shifts the scores of each probe by another constant, so the scores
of the calibration are centred, and the mean of the probe of f is added to the threshold. The
threshold for use is set in the same way on the out-of-fold scores of all right answers.

Split conformal prediction bounds the false-alarm rate for one probe and answers that it has not
seen. Here the probes of the calibration differ from the probe in use, which is fitted on more
answers. No bound holds in general for such cross-conformal thresholds; with a majority of the k
probes it would be twice the promised rate (Barber et al. 2021, "Predictive inference with the
jackknife+", theorem 4). In practice the rate is close to the promised one, as the measured rates
and a simulation (`tests/hq/test_cross_conformal.py`) show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.errors import HQError
from hq.monitor.bundle import ALL
from hq.neurons.features import Features
from hq.probe.cross_fit import CrossFit
from hq.stats.conformal import conformal_threshold, entities_needed
from hq.stats.intervals import Estimate, estimate_rate
from hq.stats.thresholds import match_quantile


@dataclass(frozen=True)
class Scores:
    """Cross-fitted decision values of the samples at one precision."""

    out_of_fold: Float[np.ndarray, " n"]  # by the probe of the sample's fold
    calibration: Float[np.ndarray, "fold n"]  # row f: centred, for the thresholds of f; NaN in f
    means: Float[np.ndarray, " fold"]  # of the probe of each fold, over the samples outside of it
    mean: float  # of the set for use, over all samples

    @classmethod
    def of(cls, probes: CrossFit, features: Features, rows: Rows) -> Self:
        """Score all samples."""
        folds = rows.folds
        return cls(
            probes.scores(features, folds),
            probes.calibration_scores(features, folds),
            probes.means(features, folds),
            float(probes.neurons.score(features).mean()),
        )

    def flags(
        self, thresholds: Float[np.ndarray, " fold"], folds: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Return which samples are at or above the threshold of their fold."""
        flags: Bool[np.ndarray, " n"] = self.out_of_fold >= thresholds[folds]
        return flags

    def transfer(
        self, thresholds: Float[np.ndarray, " fold"], after: Self, folds: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, " fold"]:
        """Transfer each fold's threshold to another precision, without labels.

        It keeps its quantile among the scores of the fold's samples, by the fold's probe.
        """
        return np.array(
            [
                match_quantile(
                    at, self.out_of_fold[folds == fold], after.out_of_fold[folds == fold]
                )
                for fold, at in enumerate(thresholds.tolist())
            ]
        )


@dataclass(frozen=True)
class DomainAnswers:
    """The answers of a domain."""

    name: str
    rows: Rows
    member: Bool[np.ndarray, " n"]  # samples of the domain

    @property
    def right(self) -> Int[np.ndarray, " right"]:
        """The right answers."""
        return np.flatnonzero(self.member & (self.rows.y == 0))

    @property
    def wrong(self) -> Int[np.ndarray, " wrong"]:
        """The hallucinated answers."""
        return np.flatnonzero(self.member & (self.rows.y == 1))

    def units(self, rows: Int[np.ndarray, " row"]) -> int:
        """Return the number of units of these rows."""
        return len(np.unique(self.rows.units[rows]))

    def calibrated(self) -> int:
        """Return the fewest units of right answers that set the threshold of a fold."""
        folds = range(int(self.rows.folds.max()) + 1)
        return min(self.units(self.right[self.rows.folds[self.right] != fold]) for fold in folds)

    def thresholds(self, scores: Scores, target: float) -> Float[np.ndarray, " fold"]:
        """Return the threshold for each fold, set on right answers of the other folds."""
        right, units, folds = self.right, self.rows.units, self.rows.folds
        thresholds = []
        for fold, of_fold in enumerate(scores.calibration):
            known = right[folds[right] != fold]
            thresholds.append(conformal_threshold(of_fold[known], target, units[known]))
        return np.asarray(scores.means + thresholds)

    def threshold(self, scores: Scores, target: float) -> float:
        """Return the threshold for use, set on the out-of-fold scores of all right answers."""
        centred = (scores.out_of_fold - scores.means[self.rows.folds])[self.right]
        return conformal_threshold(centred, target, self.rows.units[self.right]) + scores.mean

    def rate(
        self,
        rows: Int[np.ndarray, " row"],
        flags: Bool[np.ndarray, " n"] | Float[np.ndarray, " n"],
    ) -> Estimate:
        """Return the share of flagged rows; units have equal weights."""
        return estimate_rate(flags[rows], self.rows.units[rows], equal_units=True)


def domain_of(samples: Sequence[Sample], rows: Rows, name: str = ALL) -> DomainAnswers:
    """Return the answers of one relation, or all."""
    return DomainAnswers(
        name, rows, np.array([name in (ALL, sample.relation) for sample in samples])
    )


def domains(samples: Sequence[Sample], rows: Rows, target: float) -> Iterator[DomainAnswers]:
    """Yield the domains with enough right answers to promise this rate, `all` first."""
    relations = sorted({sample.relation for sample in samples} - {ALL})
    for name in (ALL, *relations) if len(relations) > 1 else (ALL,):
        domain = domain_of(samples, rows, name)
        if domain.calibrated() >= entities_needed(target) and domain.units(domain.wrong) > 1:
            yield domain


def require_calibration(samples: Sequence[Sample], rows: Rows, target: float) -> None:
    """Raises HQError if the right answers are about too few units for this rate."""
    calibrated, needed = domain_of(samples, rows).calibrated(), entities_needed(target)
    if calibrated < needed:
        raise HQError(
            f"A false-alarm rate of {target:g} needs right answers in {needed} units outside of "
            f"each fold, and there are {calibrated}: ask for a rate of 1/{calibrated + 1} or more, "
            "or ask more questions."
        )
