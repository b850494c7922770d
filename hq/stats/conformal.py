"""Thresholds with a promise: split conformal prediction over entities.

What a model knows of one entity is not independent from question to question, so what is exchanged
for what is entities, not answers. The promise is about a new entity, drawn as those of the
calibration were, and a right answer about it, drawn at random from its right ones: its score is at
or above the threshold with a probability of at most `false_alarms`. That holds for any model, any
scores and any number of entities; it is on average over calibrations as well as new answers.
Every entity weighs the same, however many answers it has: the threshold lies just above the least
score that (n + 1)(1 − false_alarms) entities' worth of answers do not exceed (Lee, Barber & Willett
2023, "Distribution-free inference with hierarchical data"). Where each has one answer, that is the
⌈(n + 1)(1 − false_alarms)⌉-th smallest score of split conformal prediction.

It holds at one time for one threshold, not for all questions of one entity, and not for questions
of another kind, or answers sampled otherwise, than the calibration's.
"""

from fractions import Fraction
from itertools import accumulate
from math import ceil, lcm

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import ArrayLike

from hq.errors import HQError
from hq.stats.bootstrap import Estimate


def conformal_threshold(
    right: ArrayLike, false_alarms: float, entities: Shaped[np.ndarray, " n"] | None = None
) -> float:
    """The least threshold that keeps the promise, from scores of right calibration answers.

    `entities` names the entity of each; without it, each answer is one of its own. Scores that tie
    fall on one side: the threshold is the next number above a score, as what lies at a threshold
    counts as hallucinated.
    HQError for a rate that is not between 0 and 1, scores that are not finite, and where there are
    too few entities for the rate (`entities_needed`).
    """
    scores = np.asarray(right, dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise HQError("The scores must be one finite number per answer: trace the answers again.")
    unit = _units(len(scores), entities)
    n = int(unit.max(initial=-1)) + 1
    require_enough(n, false_alarms)
    sizes = np.bincount(unit).tolist()
    whole = lcm(*sizes)  # what an entity weighs, so that the share of any of its answers is whole
    wanted = ceil((n + 1) * (1 - _exact(false_alarms)) * whole)
    order = np.argsort(scores, kind="stable")
    reached = accumulate(whole // sizes[entity] for entity in unit[order].tolist())
    at = next(place for place, weight in enumerate(reached) if weight >= wanted)
    return float(np.nextafter(scores[order[at]], np.inf))


def entities_needed(false_alarms: float) -> int:
    """How many entities a promise takes: 1 ÷ false_alarms − 1, rounded up.

    HQError for a rate that is not between 0 and 1.
    """
    if not 0 < false_alarms < 1:
        raise HQError(f"A false-alarm rate lies between 0 and 1, and {false_alarms:g} does not.")
    return ceil(1 / _exact(false_alarms)) - 1


def require_enough(n: int, false_alarms: float) -> None:
    """HQError where right answers about `n` entities are too few to promise this rate."""
    needed = entities_needed(false_alarms)
    if n < needed:
        raise HQError(
            f"A false-alarm rate of {false_alarms:g} needs right answers about {needed} entities, "
            f"and the calibration has {n}: ask for a rate of 1/{n + 1} or more, or calibrate on "
            "more questions."
        )


def rate_of_calibration(n: int, false_alarms: float, confidence: float = 0.95) -> float:
    """The rate that a share `confidence` of all calibrations stays below.

    The promise is on average over calibrations. With n entities of one answer each and scores
    without ties, one calibration's own rate has the distribution Beta(j, n + 1 − j), of which j =
    ⌊(n + 1)·false_alarms⌋ (Vovk 2012, "Conditional validity of inductive conformal predictors").
    HQError for too few entities.
    """
    from scipy.stats import beta

    require_enough(n, false_alarms)
    above = int((n + 1) * _exact(false_alarms))
    return float(beta.ppf(confidence, above, n + 1 - above))


def entity_rate(
    flagged: ArrayLike, seed: int, entities: Shaped[np.ndarray, " n"] | None = None
) -> Estimate:
    """The share that is flagged, every entity weighing the same, and its 95% interval.

    The interval is Clopper and Pearson's for as many trials as there are entities. It is as wide as
    if the answers about an entity always agreed, and does not shrink to nothing where none or all
    are flagged, as a bootstrap's would. Nothing is drawn: `seed` is only passed on.
    HQError where there are no answers.
    """
    from scipy.stats import beta

    values = np.asarray(flagged, dtype=np.float64)
    if not len(values):
        raise HQError("There are no answers to take a rate of: check the selection.")
    unit = _units(len(values), entities)
    sizes = np.bincount(unit)
    n = len(sizes)
    rate = float((np.bincount(unit, values) / sizes).mean())
    hits = min(n * rate, n)
    low = beta.ppf(0.025, hits, n - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return Estimate(value=rate, low=float(low), high=float(high), n=n, seed=seed)


def _units(n: int, entities: Shaped[np.ndarray, " n"] | None) -> Int[np.ndarray, " n"]:
    if entities is None:
        return np.arange(n)
    if np.shape(entities) != (n,):
        raise HQError(f"There are {len(entities)} entities for {n} answers: give one per answer.")
    return np.unique(entities, return_inverse=True)[1]


def _exact(rate: float) -> Fraction:
    """The rate as it is written: 0.1 is a tenth, which no binary number is."""
    return Fraction(str(float(rate)))
