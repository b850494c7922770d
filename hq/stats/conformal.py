"""Thresholds with a guaranteed false-alarm rate: split conformal prediction over entities.

What a model knows about one entity is not independent from question to question, so the
exchangeable units are entities, not answers. The guarantee: for a new entity from the distribution
of those in the calibration, and a right answer drawn at random from its right answers, the score is
at or above the threshold with a probability of at most `false_alarms`. This holds for any model,
any scores and any number of entities, on average over calibrations and new answers.

All entities have the same weight, however many answers they have: the threshold lies just above the
smallest score with a cumulative weight of (n + 1)(1 − false_alarms) entities or more (Lee, Barber &
Willett 2023, "Distribution-free inference with hierarchical data"). With one answer per entity,
this is the ⌈(n + 1)(1 − false_alarms)⌉-th smallest score of split conformal prediction (Vovk,
Gammerman & Shafer 2005, "Algorithmic learning in a random world").

The guarantee is for one answer to one question. It does not cover all questions about an entity
jointly, other kinds of questions, or answers that are sampled in another way than those of the
calibration.
"""

from fractions import Fraction
from itertools import accumulate
from math import ceil, lcm

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import ArrayLike

from hq.errors import HQError


def conformal_threshold(
    right: ArrayLike, false_alarms: float, entities: Shaped[np.ndarray, " n"] | None = None
) -> float:
    """Return the smallest threshold with the guarantee, from scores of right calibration answers.

    `entities` has the entity of each answer; by default each answer is an entity of its own. The
    threshold is the next float above a score, as a score at the threshold counts as hallucinated.
    Raises HQError if the rate is not between 0 and 1, a score is not finite, or there are too few
    entities for the rate (`entities_needed`).
    """
    scores = np.asarray(right, dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise HQError("The scores must be one finite number per answer: trace the answers again.")
    unit = _units(len(scores), entities)
    n = int(unit.max(initial=-1)) + 1
    require_enough(n, false_alarms)
    sizes = np.bincount(unit).tolist()
    entity_weight = lcm(*sizes)  # so that the weight of each answer is an integer
    target = ceil((n + 1) * (1 - _exact(false_alarms)) * entity_weight)
    order = np.argsort(scores, kind="stable")
    cumulative = accumulate(entity_weight // sizes[entity] for entity in unit[order].tolist())
    rank = next(rank for rank, weight in enumerate(cumulative) if weight >= target)
    return float(np.nextafter(scores[order[rank]], np.inf))


def entities_needed(false_alarms: float) -> int:
    """Return the number of entities that a rate needs: 1 ÷ false_alarms − 1, rounded up.

    Raises HQError if the rate is not between 0 and 1.
    """
    if not 0 < false_alarms < 1:
        raise HQError(
            f"The false-alarm rate {false_alarms:g} is not between 0 and 1: name one such as 0.05."
        )
    return ceil(1 / _exact(false_alarms)) - 1


def require_enough(n: int, false_alarms: float) -> None:
    """Raise HQError if right answers about `n` entities are too few to guarantee this rate."""
    needed = entities_needed(false_alarms)
    if n < needed:
        raise HQError(
            f"A false-alarm rate of {false_alarms:g} needs right answers about {needed} entities, "
            f"and the calibration has {n}: ask for a rate of 1/{n + 1} or more, or calibrate on "
            "more questions."
        )


def rate_of_calibration(n: int, false_alarms: float, confidence: float = 0.95) -> float:
    """Return the false-alarm rate that a share `confidence` of all calibrations stays below.

    The guarantee is an average over calibrations. With n entities of one answer each and scores
    without ties, the rate of one calibration has the distribution Beta(j, n + 1 − j) with
    j = ⌊(n + 1)·false_alarms⌋ (Vovk 2012, "Conditional validity of inductive conformal
    predictors"). Raises HQError if there are too few entities.
    """
    from scipy.stats import beta

    require_enough(n, false_alarms)
    above = int((n + 1) * _exact(false_alarms))
    return float(beta.ppf(confidence, above, n + 1 - above))


def _units(n: int, entities: Shaped[np.ndarray, " n"] | None) -> Int[np.ndarray, " n"]:
    if entities is None:
        return np.arange(n)
    if np.shape(entities) != (n,):
        raise HQError(
            f"There are {len(entities)} entities for {n} answers: give one entity per answer."
        )
    return np.unique(entities, return_inverse=True)[1]


def _exact(rate: float) -> Fraction:
    """Return the decimal rate exactly: 0.1 is 1/10, which has no exact binary float."""
    return Fraction(str(float(rate)))
