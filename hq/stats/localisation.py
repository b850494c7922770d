"""Localisation of the first wrong step of an answer, from one score per step.

The measure is that of ProcessBench (Zheng et al. 2024, arXiv 2412.06559): the accuracy on answers
with a wrong step, the accuracy on answers without one, and F1, the harmonic mean of both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from hq.stats.intervals import Estimate, Weights, estimate, estimate_mean, estimate_rate

ALL_RIGHT = -1
"""In place of the index of the first wrong step."""
_CANDIDATES = 512  # thresholds that are tried

Steps = Sequence[Float[np.ndarray, " step"]]
"""The scores of each answer's steps; higher for a step that is more likely wrong."""


class Localisation(NamedTuple):
    """How often the first wrong step is located."""

    wrong: Estimate | None  # accuracy on answers with a wrong step
    right: Estimate | None  # accuracy on answers without one
    f1: Estimate | None


def highest(scores: Steps) -> Int[np.ndarray, " n"]:
    """Return the index of the highest score of each answer, the first one of equal scores."""
    return np.array([int(np.argmax(of_answer)) for of_answer in scores], dtype=np.int64)


def first_alarm(scores: Steps, threshold: float | Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return the first step of each answer at or above the threshold; ALL_RIGHT without one."""
    alarms = _padded(scores) >= np.reshape(threshold, (-1, 1))
    located: Int[np.ndarray, " n"] = np.where(alarms.any(axis=1), alarms.argmax(axis=1), ALL_RIGHT)
    return located


def best_threshold(scores: Steps, first_wrong: Int[np.ndarray, " n"]) -> float:
    """Return the threshold on which `first_alarm` has the largest F1.

    It is the midpoint of two adjacent scores, or infinite if no alarm is best. With many steps,
    quantiles of the scores are tried. If one kind of answers is missing, its accuracy counts as 1.
    """
    values = np.unique(np.concatenate(list(scores)))
    if len(values) > _CANDIDATES:
        values = np.unique(np.quantile(values, np.linspace(0, 1, _CANDIDATES)))
    cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, [np.inf]])
    padded, wrong = _padded(scores), first_wrong != ALL_RIGHT
    f1 = []
    for cut in cuts.tolist():
        alarms = padded >= cut
        located = np.where(alarms.any(axis=1), alarms.argmax(axis=1), ALL_RIGHT)
        hits = located == first_wrong
        a, b = (float(hits[of].mean()) if of.any() else 1.0 for of in (wrong, ~wrong))
        f1.append(2 * a * b / (a + b) if a + b else 0.0)
    return float(cuts[int(np.argmax(f1))])


def localisation(
    located: Int[np.ndarray, " n"],
    first_wrong: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
) -> Localisation:
    """Return the accuracies on answers with and without a wrong step, and F1, with intervals.

    An estimate is None if its answers are of fewer than two groups; so is F1 if it is undefined
    without one of the groups.
    """
    return localisation_of_hits(
        (located == first_wrong).astype(float), first_wrong != ALL_RIGHT, groups
    )


def localisation_of_hits(
    hits: Float[np.ndarray, " n"],
    wrong: Shaped[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
) -> Localisation:
    """Return the same from the probability that each answer is located rightly.

    Args:
        hits: 0 or 1 for each answer, or a probability for a rule that draws at random; the interval
            is then that of the mean probability.
        wrong: Whether each answer has a wrong step.
        groups: The unit of each answer.
    """
    share = estimate_rate if np.isin(hits, (0, 1)).all() else estimate_mean
    on_wrong, on_right = (
        share(hits[of], groups[of]) if _units(groups[of]) > 1 else None for of in (wrong, ~wrong)
    )
    of_both = min(_units(groups[wrong]), _units(groups[~wrong])) > 1
    return Localisation(on_wrong, on_right, _f1(hits, wrong, groups) if of_both else None)


def _f1(
    hits: Float[np.ndarray, " n"],
    wrong: Shaped[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
) -> Estimate:
    def f1(weights: Weights) -> Float[np.ndarray, " weightings"]:
        a, b = (weights[:, of] @ hits[of] / weights[:, of].sum(axis=1) for of in (wrong, ~wrong))
        ratio: Float[np.ndarray, " weightings"] = np.zeros(len(weights))
        np.divide(2 * a * b, a + b, out=ratio, where=a + b > 0)
        return ratio

    return estimate(f1, len(hits), groups, "F1", "logit")


def _units(groups: Shaped[np.ndarray, " m"]) -> int:
    return len(np.unique(groups))


def _padded(scores: Steps) -> Float[np.ndarray, "n step"]:
    """One row per answer, with NaN after its last step, which is at or above no threshold."""
    padded = np.full((len(scores), max(map(len, scores), default=0)), np.nan)
    for row, of_answer in zip(padded, scores, strict=True):
        row[: len(of_answer)] = of_answer
    return padded
