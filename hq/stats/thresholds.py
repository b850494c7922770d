"""Thresholds on decision values: selection, transfer to another precision, evaluation.

A response counts as hallucinated if its score is at or above the threshold.
"""

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike

from hq.errors import HQError
from hq.stats.intervals import Estimate, Weights, clopper_pearson, estimate, units_of


def estimate_f1(
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float | Float[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """F1 of the hallucinated class at `threshold`, with its jackknife interval on the logit scale.

    `threshold` may differ between rows, such as between the folds of a cross-fitted probe. F1 is
    2J/(1 + J), where J is the share of hits among the rows that are labelled or called
    hallucinated. At an F1 of 0 or 1, the interval is that of Clopper & Pearson for J, with one
    trial per unit that has such a row.
    """
    predicted, y = np.asarray(scores) >= threshold, np.asarray(labels).astype(bool)
    hits, positives = predicted & y, predicted.astype(float) + y

    def f1(weights: Weights) -> Float[np.ndarray, " weightings"]:
        count = weights @ positives
        ratio: Float[np.ndarray, " weightings"] = np.full(len(weights), np.nan)
        np.divide(2 * (weights @ hits), count, out=ratio, where=count > 0)
        return ratio

    result = estimate(f1, len(y), groups, "F1", "logit")
    if result.value not in (0, 1):
        return result
    trials = len(np.unique(units_of(len(y), groups)[positives > 0]))
    low, high = (2 * j / (1 + j) for j in clopper_pearson(result.value * trials, trials))
    return result.model_copy(update={"low": low, "high": high})


def youden_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the threshold with the largest sensitivity + specificity − 1 (Youden 1950).

    It is the midpoint of two adjacent scores, so that a small change of a score does not change its
    class. Raises HQError unless both classes occur.
    """
    from sklearn.metrics import roc_curve

    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if len(np.unique(y)) < 2:
        raise HQError(
            "The labels contain only one class: a threshold needs right and wrong answers."
        )
    false_positive, true_positive, cuts = roc_curve(y, s, drop_intermediate=False)
    # The first cut is infinite, which calls nothing hallucinated.
    best = 1 + int(np.argmax((true_positive - false_positive)[1:]))
    below = cuts[min(best + 1, len(cuts) - 1)]
    return float((cuts[best] + below) / 2)


def match_quantile(threshold: float, from_scores: ArrayLike, to_scores: ArrayLike) -> float:
    """Transfer a threshold to other scores by matching quantiles, without labels.

    The result has the same quantile among `to_scores` as the threshold among `from_scores`
    (interpolated empirical distribution functions, mid-ranks for ties). Outside the range of the
    scores, the distance from the nearest score is kept.
    """
    source, source_quantiles = _ecdf(from_scores)
    target, target_quantiles = _ecdf(to_scores)
    quantile = np.interp(threshold, source, source_quantiles)
    beyond = threshold - float(np.clip(threshold, source[0], source[-1]))
    return float(np.interp(quantile, target_quantiles, target)) + beyond


def _ecdf(scores: ArrayLike) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return the distinct scores, ascending, and the share below each plus half of its ties."""
    s = np.asarray(scores, dtype=np.float64)
    if s.size == 0 or not np.isfinite(s).all():
        raise HQError(
            "Quantiles need at least one score, all of them finite: trace the texts again."
        )
    values, counts = np.unique(s, return_counts=True)
    return values, (np.cumsum(counts) - counts / 2) / s.size
