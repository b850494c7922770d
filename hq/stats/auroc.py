"""The area under the ROC curve: its value, its estimate, and differences of two.

As in `hq.stats.intervals`, a statistic is a function of row weights, so that rows are sorted once.
"""

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from hq.errors import HQError
from hq.stats.intervals import Estimate, Statistic, Weights, clopper_pearson, estimate, units_of


def auroc(
    scores: ArrayLike, labels: ArrayLike, strata: Shaped[np.ndarray, " n"] | None = None
) -> float:
    """Area under the ROC curve: P(a positive scores above a negative), ties counting one half.

    With `strata`, only a positive and a negative of the same stratum are compared. O(n log n).
    Raises HQError if a score is NaN, a label is not 0 or 1, or no stratum has both classes.
    """
    s, y = _two_classes(scores, labels, strata)
    return float(auroc_statistic(s, y, strata)(np.ones((1, len(y))))[0])


def estimate_auroc(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: Shaped[np.ndarray, " n"] | None = None,
    strata: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """AUROC with its jackknife interval on the logit scale.

    At an AUROC of 0 or 1, the interval is that of Clopper & Pearson with one trial per unit of the
    rarer class: as wide as if the answers of a unit were always all right or all wrong.
    """
    s, y = _two_classes(scores, labels, strata)
    area = estimate(auroc_statistic(s, y, strata), len(y), groups, "AUROC", "logit")
    if area.value not in (0, 1):
        return area
    unit = units_of(len(y), groups)
    rarer = min(len(np.unique(unit[y == label])) for label in (0, 1))
    low, high = clopper_pearson(area.value * rarer, rarer)
    return area.model_copy(update={"low": low, "high": high})


def estimate_auroc_difference(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    groups: Shaped[np.ndarray, " n"] | None = None,
    strata: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """AUROC of `scores_a` minus AUROC of `scores_b`, paired: both without the same unit.

    If `scores_b` is [draws, n], the mean AUROC of its rows is subtracted.
    """
    difference = auroc_difference_statistic(scores_a, scores_b, labels, strata)
    return estimate(difference, len(np.asarray(labels)), groups, "difference of AUROCs")


def auroc_difference_statistic(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    strata: Shaped[np.ndarray, " n"] | None = None,
) -> Statistic:
    """Return the difference of `estimate_auroc_difference` as a statistic."""
    a, y = _two_classes(scores_a, labels, strata)
    first = auroc_statistic(a, y, strata)
    others = [
        auroc_statistic(_two_classes(b, labels, strata)[0], y, strata)
        for b in np.atleast_2d(scores_b)
    ]

    def difference(weights: Weights) -> Float[np.ndarray, " weightings"]:
        subtracted = sum(other(weights) for other in others) / len(others)
        return first(weights) - subtracted

    return difference


def auroc_statistic(
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    strata: Shaped[np.ndarray, " n"] | None = None,
) -> Statistic:
    """Return the weighted AUROC as a statistic; rows are sorted once, not at each call.

    Over distinct scores t of a stratum, with positive and negative weights P_t and N_t, the wins
    are Σ_t P_t · (Σ_{u<t} N_u + N_t / 2), and the pairs ΣP · ΣN. The AUROC is the sum of the wins
    over the strata divided by the sum of the pairs; NaN if there are no pairs.
    """
    stratum = np.zeros(len(scores), dtype=np.int64)
    if strata is not None:
        stratum = np.unique(strata, return_inverse=True)[1]
    order = np.lexsort((scores, stratum))
    ascending, within, positive = scores[order], stratum[order], labels[order] == 1
    changes = (ascending[1:] != ascending[:-1]) | (within[1:] != within[:-1])
    starts = np.flatnonzero(np.r_[True, changes])  # of runs of equal scores
    of_run = within[starts]
    first = np.flatnonzero(np.r_[True, of_run[1:] != of_run[:-1]])  # runs that start a stratum

    def statistic(weights: Weights) -> Float[np.ndarray, " weightings"]:
        sorted_weights = weights[:, order]
        pos = np.add.reduceat(np.where(positive, sorted_weights, 0), starts, axis=1)
        neg = np.add.reduceat(np.where(positive, 0, sorted_weights), starts, axis=1)
        below = np.cumsum(neg, axis=1)
        n_neg = np.add.reduceat(neg, first, axis=1)
        before = np.cumsum(n_neg, axis=1) - n_neg  # weight of the negatives of earlier strata
        wins = (pos * (below - before[:, of_run] - neg / 2)).sum(axis=1)
        pairs = (np.add.reduceat(pos, first, axis=1) * n_neg).sum(axis=1)
        area: Float[np.ndarray, " weightings"] = np.full(len(wins), np.nan)
        np.divide(wins, pairs, out=area, where=pairs > 0)
        return area

    return statistic


def grouped_auroc_statistic(
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
) -> Statistic:
    """Return the AUROC as a statistic of weights of groups: rows of a group have the same weight.

    For many rows in few groups: the pairs in which a positive of group g scores above a negative of
    group h are counted once, so a call costs O(groups²), whatever the number of rows. NaN if a
    class has no weight.
    """
    order = np.argsort(scores, kind="stable")
    ascending = scores[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
    membership = np.eye(len(np.unique(groups)))[np.unique(groups, return_inverse=True)[1][order]]
    positive = labels[order, None] == 1
    pos, neg = (np.add.reduceat(membership * side, starts) for side in (positive, ~positive))
    wins = pos.T @ (np.cumsum(neg, axis=0) - neg / 2)
    n_pos, n_neg = pos.sum(axis=0), neg.sum(axis=0)

    def statistic(weights: Weights) -> Float[np.ndarray, " weightings"]:
        pairs = (weights @ n_pos) * (weights @ n_neg)
        area: Float[np.ndarray, " weightings"] = np.full(len(weights), np.nan)
        np.divide((weights @ wins * weights).sum(axis=1), pairs, out=area, where=pairs > 0)
        return area

    return statistic


def _two_classes(
    scores: ArrayLike, labels: ArrayLike, strata: Shaped[np.ndarray, " n"] | None
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim != 1 or s.shape != y.shape:
        raise HQError(
            f"Scores {s.shape} and labels {y.shape} differ in shape: give one of each per row."
        )
    if strata is not None and np.shape(strata) != s.shape:
        raise HQError(
            f"Scores {s.shape} and strata {np.shape(strata)} differ in shape: give one per row."
        )
    if np.isnan(s).any():
        raise HQError(f"{int(np.isnan(s).sum())} of {len(s)} scores are NaN: trace those again.")
    if not np.isin(y, (0, 1)).all():
        raise HQError("Labels must be 0 (right) or 1 (hallucinated): relabel the others.")
    y = y.astype(np.int64)
    if len(np.unique(y)) < 2:
        raise HQError("The labels contain one class: an AUROC needs right and wrong answers.")
    if strata is not None and not np.isin(strata[y == 1], strata[y == 0]).any():
        raise HQError("Every stratum has one class: an AUROC needs right and wrong answers of one.")
    return s, y
