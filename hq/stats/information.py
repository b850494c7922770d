"""Mutual information between a binary indicator and binary labels, in bits.

I = Σ p(h, y) · log₂(p(h, y) / (p(h)·p(y))), with shares of rows for probabilities (the plug-in
estimate). It is too large by about (K_hy − K_h − K_y + 1) / (2n·ln 2), where K counts the values
that occur; Miller (1955), "Note on the bias of information estimates", subtracts this. For two
binary variables, that is 1/(2n·ln 2). The correction assumes independent rows.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from hq.stats.intervals import Statistic, Weights

_EXACT = 2**24  # whole numbers below it are exact in float32


def information_statistic(high: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> Statistic:
    """Return the plug-in information as a statistic of row weights."""
    cells = np.stack([(high == h) & (labels == y) for h in (True, False) for y in (1, 0)])

    def statistic(weights: Weights) -> Float[np.ndarray, " weightings"]:
        joint = (weights @ cells.T.astype(np.float64)).reshape(-1, 2, 2)
        total = joint.sum(axis=(1, 2))
        terms = _x_log_x(joint).sum(axis=(1, 2)) + _x_log_x(total)
        for axis in (1, 2):
            terms -= _x_log_x(joint.sum(axis=axis)).sum(axis=1)
        information: Float[np.ndarray, " weightings"] = np.full(len(total), np.nan)
        np.divide(terms, total, out=information, where=total > 0)
        np.maximum(information, 0, out=information)  # NaN stays; rounding can leave −1e-16
        return information

    return statistic


def miller_madow(high: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Return the correction that is added to the plug-in information."""
    joint = len(np.unique(2 * high.astype(int) + labels))
    excess = len(np.unique(high)) + len(np.unique(labels)) - joint - 1
    return float(excess / (2 * len(high) * np.log(2)))


def column_information(
    high: Bool[np.ndarray, "p n"], labels: Int[np.ndarray, "labelings n"]
) -> Float[np.ndarray, "labelings p"]:
    """Return the plug-in information of every indicator for each labeling of the rows."""
    n = labels.shape[1]
    of_count = _x_log_x(np.arange(n + 1, dtype=np.float64))
    terms = of_count[n]
    for cell in _cells(high, labels):
        terms = terms + of_count[cell]
    n_high, n_pos = high.sum(axis=1), labels.sum(axis=1)[:, None]
    for margin in (n_high, n - n_high, n_pos, n - n_pos):
        terms = terms - of_count[margin]
    information: Float[np.ndarray, "labelings p"] = np.maximum(terms / n, 0)
    return information


def column_corrections(
    high: Bool[np.ndarray, "p n"], labels: Int[np.ndarray, "labelings n"]
) -> Float[np.ndarray, "labelings p"]:
    """Return `miller_madow` of every indicator for each labeling of the rows."""
    n = labels.shape[1]
    joint = sum((cell > 0).astype(np.int64) for cell in _cells(high, labels))
    n_high, n_pos = high.sum(axis=1), labels.sum(axis=1)[:, None]
    margins = sum((m > 0).astype(np.int64) for m in (n_high, n - n_high, n_pos, n - n_pos))
    correction: Float[np.ndarray, "labelings p"] = (margins - joint - 1) / (2 * n * np.log(2))
    return correction


def _cells(
    high: Bool[np.ndarray, "p n"], labels: Int[np.ndarray, "labelings n"]
) -> list[Int[np.ndarray, "labelings p"]]:
    """Return how many rows have each pair of indicator and label."""
    n = labels.shape[1]
    exact: type[np.floating[Any]] = np.float32 if n < _EXACT else np.float64
    both = np.matmul(labels.astype(exact), high.astype(exact).T).astype(np.int64)
    n_high, n_pos = high.sum(axis=1), labels.sum(axis=1)[:, None]
    return [both, n_high - both, n_pos - both, n - n_pos - n_high + both]


def _x_log_x(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.asarray(x * np.log2(np.where(x > 0, x, 1)))
