"""Drift of a monitor: whether its scores and its threshold still do on new answers what they did.

Two differences decide, each by an equivalence test (`hq.stats.equivalence`): that of the AUROC from
the reference's, and that of the false-alarm rate from the promised one. Without labels, the share
of flagged answers takes the place of both. `docs/evidence/drift.md` has the rule.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, isfinite

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import expit
from scipy.stats import t as student_t

from hq.errors import HQError
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.stats.calibration import estimate_calibration_slope, expected_calibration_error
from hq.stats.drift import ScoreShift, score_shift
from hq.stats.equivalence import Equivalence, EquivalenceResult, decide
from hq.stats.intervals import Estimate, combined_interval, estimate_mean, estimate_rate

LEAST_UNITS = 10
"""Fewest units of new answers, and of those with each label, from which drift is measured."""


class Verdict(StrEnum):
    """Verdict on a monitor."""

    OK = "ok"
    THRESHOLD_STALE = "threshold-stale"
    SCORER_DEGRADED = "scorer-degraded"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Margins:
    """The largest negligible changes, which are chosen before the answers are seen."""

    auroc: float = 0.02
    rate: float = 0.05  # of the false-alarm rate, or of the share of flagged answers

    def __post_init__(self) -> None:
        for margin in (self.auroc, self.rate):
            if not (isfinite(margin) and margin > 0):
                raise HQError(
                    f"The margin {margin} is not a positive number: name the largest negligible "
                    "change."
                )


@dataclass(frozen=True, eq=False)
class MonitoredAnswers:
    """Answers with their scores, and whether these are at or above the threshold."""

    scores: Float[np.ndarray, " n"]
    flags: Bool[np.ndarray, " n"]
    units: Shaped[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"] | None = None  # 1 for a hallucinated answer
    strata: Int[np.ndarray, " n"] | None = None  # fold of the probe that scored each, if several


@dataclass(frozen=True, eq=False)
class MonitorReference:
    """What the monitor did when it was made."""

    promised: float  # false-alarm rate
    calibrated: int  # units of right answers that set the threshold
    scores: Float[np.ndarray, " n"]
    flagged: Estimate  # share of these answers at or above the threshold
    auroc: Estimate | None
    answers: MonitoredAnswers | None = None  # None if only these summaries are known
    paired: bool = False  # whether the new answers are the same texts, row by row


@dataclass(frozen=True)
class Drift:
    """How far a monitor drifted, and the verdict."""

    n: int
    units: int
    shift: ScoreShift
    promised: float
    flagged_reference: Estimate
    flagged: Estimate
    flagged_change: EquivalenceResult
    auroc_reference: Estimate | None
    auroc: Estimate | None  # this and all below: None without labels
    auroc_change: EquivalenceResult | None
    false_alarms: Estimate | None
    false_alarm_change: EquivalenceResult | None  # from the promised rate
    calibration_error_reference: float | None
    calibration_error: float | None
    calibration_slope: Estimate | None
    verdict: Verdict
    more: int | None  # units to add for a verdict, if inconclusive and if units can decide it

    @property
    def labelled(self) -> bool:
        """Whether the verdict uses labels; without, it is about the threshold only."""
        return self.auroc is not None

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.verdict is Verdict.INCONCLUSIVE:
            if self.more is None:
                return "inconclusive (more new answers alone would not decide)"
            return f"inconclusive (about {self.more:,} more units needed)"
        if self.verdict is Verdict.OK and not self.labelled:
            return "ok (threshold only: whether the score still separates needs labels)"
        return self.verdict.value


def measure_drift(
    reference: MonitorReference, new: MonitoredAnswers, margins: Margins, seed: int = 0
) -> Drift:
    """Return the drift of a monitor on new answers.

    Args:
        reference: What the monitor did when it was made.
        new: The new answers; if `paired`, in the order of the reference's.
        margins: The largest negligible changes.
        seed: Seed of the permutations.

    Raises:
        HQError: If the new answers are about too few units, or have labels of one class.
    """
    require_enough(new.units, new.labels)
    before = reference.answers
    shift = score_shift(
        reference.scores, new.scores, None if before is None else before.units, new.units, seed
    )
    flagged, flagged_change = _flagged_change(reference, new, margins)
    area = area_change = alarms = alarm_change = slope = error = error_before = None
    if new.labels is not None:
        area, area_change = _auroc_change(reference, new, margins)
        alarms, alarm_change = _false_alarm_change(reference, new, margins)
        slope = estimate_calibration_slope(new.scores, new.labels, new.units)
        error = expected_calibration_error(expit(new.scores), new.labels)
        if before is not None and before.labels is not None:
            error_before = expected_calibration_error(expit(before.scores), before.labels)
    units = len(np.unique(new.units))
    verdict, more = (
        verdict_without_labels(flagged_change)
        if area_change is None or alarm_change is None
        else _labelled_verdict(area_change, alarm_change, units)
    )
    return Drift(
        n=len(new.scores),
        units=units,
        shift=shift,
        promised=reference.promised,
        flagged_reference=reference.flagged,
        flagged=flagged,
        flagged_change=flagged_change,
        auroc_reference=reference.auroc,
        auroc=area,
        auroc_change=area_change,
        false_alarms=alarms,
        false_alarm_change=alarm_change,
        calibration_error_reference=error_before,
        calibration_error=error,
        calibration_slope=slope,
        verdict=verdict,
        more=more,
    )


def require_enough(
    units: Shaped[np.ndarray, " n"], labels: Int[np.ndarray, " n"] | None = None
) -> None:
    """Raises HQError if answers are about too few units, or labels are of one class."""
    kinds = {"": np.ones(len(units), dtype=bool)}
    if labels is not None:
        kinds = {"right ": labels == 0, "hallucinated ": labels == 1}
    for name, of_kind in kinds.items():
        count = len(np.unique(units[of_kind]))
        if count == 0:
            raise HQError(
                f"There are no {name}answers among the {len(units)} new ones, but an AUROC and a "
                "false-alarm rate need both labels: add some, or compare without labels."
            )
        if count < LEAST_UNITS:
            raise HQError(
                f"The new {name}answers are about {count} independent units, and drift needs "
                f"{LEAST_UNITS}: add answers to other questions."
            )


def _auroc_change(
    reference: MonitorReference, new: MonitoredAnswers, margins: Margins
) -> tuple[Estimate, EquivalenceResult]:
    if new.labels is None or reference.auroc is None:
        raise HQError("A change of the AUROC needs the labels of both: compare without labels.")
    area = estimate_auroc(new.scores, new.labels, new.units, new.strata)
    if reference.paired and reference.answers is not None:
        before = reference.answers.scores
        change = estimate_auroc_difference(new.scores, before, new.labels, new.units, new.strata)
        return area, decide(change, margins.auroc)
    return area, _independent(area, reference.auroc, margins.auroc)


def _false_alarm_change(
    reference: MonitorReference, new: MonitoredAnswers, margins: Margins
) -> tuple[Estimate, EquivalenceResult]:
    """Compare the rate of the units with the promised one.

    Its variance is at least that of as many answers as there are units at the promised rate, so
    that a rate of 0 has one too. On other answers than those that set the threshold, the variance
    of the rate over calibrations is added: that of Beta(j, n + 1 − j) with j = ⌊(n + 1)·promised⌋
    (`hq.stats.conformal.rate_of_calibration`).
    """
    right = np.flatnonzero(new.labels == 0)
    rate = estimate_rate(new.flags[right], new.units[right], equal_units=True)
    promised, n = reference.promised, reference.calibrated
    parts = [(max(_variance(rate), promised * (1 - promised) / rate.n), rate.df or 1.0)]
    if not reference.paired:
        above = max(int((n + 1) * promised + 1e-9), 1)
        parts.append((above * (n + 1 - above) / ((n + 1) ** 2 * (n + 2)), float(n)))
    return rate, _decided(rate.value - promised, rate.n, parts, margins.rate)


def _flagged_change(
    reference: MonitorReference, new: MonitoredAnswers, margins: Margins
) -> tuple[Estimate, EquivalenceResult]:
    """Compare the share of flagged answers with the reference's.

    The standard error is at least 1/units, as if the flags of one unit had changed.
    """
    flagged = estimate_rate(new.flags, new.units)
    if reference.paired and reference.answers is not None:
        changes = new.flags.astype(float) - reference.answers.flags
        change = estimate_mean(changes, new.units)
        parts = [(max(_variance(change), change.n**-2.0), change.df or 1.0)]
    else:
        before = reference.flagged
        parts = [(max(_variance(of), of.n**-2.0), of.df or 1.0) for of in (flagged, before)]
    value = flagged.value - reference.flagged.value
    return flagged, _decided(value, flagged.n, parts, margins.rate)


def _independent(new: Estimate, before: Estimate, margin: float) -> EquivalenceResult:
    parts = [(_variance(of), of.df or 1.0) for of in (new, before)]
    return _decided(new.value - before.value, new.n, parts, margin)


def _decided(
    value: float, units: int, parts: list[tuple[float, float]], margin: float
) -> EquivalenceResult:
    """Decide on a difference; more new units reduce the first part of its variance only."""
    total = sum(part for part, _ in parts)
    fixed = 1 - parts[0][0] / total if total else 0.0
    return decide(combined_interval(value, units, parts), margin, fixed)


def _variance(of: Estimate) -> float:
    """Return the squared standard error, from the interval where all or no rows are positive."""
    if of.se is None or of.df is None:
        raise HQError(f"The estimate {of} has no standard error: use one over rows.")
    quantile = float(student_t.ppf(0.975, of.df))
    return of.se**2 or ((of.high - of.low) / (2 * quantile)) ** 2


def _labelled_verdict(
    area: EquivalenceResult, alarms: EquivalenceResult, units: int
) -> tuple[Verdict, int | None]:
    changed = Equivalence.CHANGED
    if area.verdict is changed and area.difference.value < 0:
        return Verdict.SCORER_DEGRADED, None
    if alarms.verdict is changed:
        return Verdict.THRESHOLD_STALE, None
    # A higher AUROC is no fault, so the lower of the two one-sided tests is enough.
    undecided = [area] if area.low90 <= -area.margin and area.verdict is not changed else []
    undecided += [alarms] if alarms.verdict is Equivalence.UNDECIDED else []
    if not undecided:
        return Verdict.OK, None
    return Verdict.INCONCLUSIVE, _more(undecided, units)


def verdict_without_labels(flagged: EquivalenceResult) -> tuple[Verdict, int | None]:
    """Return the verdict on a change of the share of flagged answers, and the units to add."""
    if flagged.verdict is Equivalence.CHANGED:
        return Verdict.THRESHOLD_STALE, None
    if flagged.verdict is Equivalence.PRESERVED:
        return Verdict.OK, None
    return Verdict.INCONCLUSIVE, _more([flagged], flagged.difference.n)


def _more(undecided: list[EquivalenceResult], units: int) -> int | None:
    """Return how many units to add, of all answers; None if units alone do not decide."""
    factors = [
        None if result.n_needed is None else result.n_needed / result.difference.n
        for result in undecided
    ]
    known = [factor for factor in factors if factor is not None]
    return ceil(units * max(known)) - units if len(known) == len(factors) else None
