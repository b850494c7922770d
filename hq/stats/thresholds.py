"""Thresholds on decision values: choosing one, carrying it to another precision, judging it.

A response counts as hallucinated where its score is at or above the threshold.
"""

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike

from hq.errors import HQError
from hq.stats.bootstrap import Estimate, ResampleWeights, bootstrap


def bootstrap_f1(
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """F1 of the hallucinated class at `threshold`, with its bootstrap interval."""
    called, y = np.asarray(scores) >= threshold, np.asarray(labels).astype(bool)
    hits, called_or_true = called & y, called.astype(float) + y

    def f1(weights: ResampleWeights) -> Float[np.ndarray, " replicates"]:
        count = weights @ called_or_true
        # Nothing called or true: undefined, and drawn again.
        ratio: Float[np.ndarray, " replicates"] = np.full(len(weights), np.nan)
        np.divide(2 * (weights @ hits), count, out=ratio, where=count > 0)
        return ratio

    return bootstrap(f1, len(y), seed, replicates, groups, "F1")


def youden_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold with the largest sensitivity + specificity − 1 (Youden 1950).

    It lies midway between two neighbouring scores, so that a small drift of scores flips neither.
    HQError unless both classes are there.
    """
    from sklearn.metrics import roc_curve

    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if len(np.unique(y)) < 2:
        raise HQError("The labels hold one class only: a threshold needs right and wrong answers.")
    false_positive, true_positive, cuts = roc_curve(y, s, drop_intermediate=False)
    # The first cut is infinite: calling nothing hallucinated is no threshold.
    best = 1 + int(np.argmax((true_positive - false_positive)[1:]))
    below = cuts[min(best + 1, len(cuts) - 1)]
    return float((cuts[best] + below) / 2)


def match_quantile(threshold: float, from_scores: ArrayLike, to_scores: ArrayLike) -> float:
    """Carry a threshold over to other scores by matching quantiles: no labels are needed.

    The threshold's place among `from_scores` (interpolated ECDF, mid-rank positions) is looked up
    among `to_scores`. Beyond the scores' range it keeps its distance from their end.
    """
    origin, origin_places = _ecdf(from_scores)
    target, target_places = _ecdf(to_scores)
    place = np.interp(threshold, origin, origin_places)
    beyond = threshold - float(np.clip(threshold, origin[0], origin[-1]))
    return float(np.interp(place, target_places, target)) + beyond


def _ecdf(scores: ArrayLike) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Distinct scores, ascending, and the share of scores below each plus half of its ties."""
    s = np.asarray(scores, dtype=np.float64)
    if s.size == 0 or not np.isfinite(s).all():
        raise HQError("Quantiles need finite scores, and at least one: trace the texts again.")
    values, counts = np.unique(s, return_counts=True)
    return values, (np.cumsum(counts) - counts / 2) / s.size
