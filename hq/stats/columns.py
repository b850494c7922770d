"""AUROCs of many columns on the same labels, such as those of all neurons of a model.

Values and intervals are those of `hq.stats.auroc` for each column. Ranks are computed for blocks of
columns, and many labelings of the same rows cost one matrix product.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import csr_array
from scipy.special import expit, logit
from scipy.stats import rankdata
from scipy.stats import t as student_t

from hq.errors import HQError
from hq.stats.auroc import estimate_auroc
from hq.stats.intervals import units_of

_EXACT = 2**24  # whole numbers below it are exact in float32


class ColumnEstimates(NamedTuple):
    """A value per column with the ends of its 95% interval."""

    value: Float[np.ndarray, " p"]
    low: Float[np.ndarray, " p"]
    high: Float[np.ndarray, " p"]


def column_blocks(p: int, size: int = 1024) -> Iterator[slice]:
    """Yield slices that cover p columns: a block of a few thousand rows fits into caches."""
    for start in range(0, p, size):
        yield slice(start, min(start + size, p))


def column_ranks(X: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "p n"]:
    """Return the rank of each value in its column, from 1, with mean ranks for ties.

    Raises HQError if a value is NaN.
    """
    n, p = X.shape
    ranks = np.empty((p, n), dtype=np.float32)
    for block in column_blocks(p):
        _rank(np.ascontiguousarray(X[:, block].T), ranks[block])
    return ranks


def _rank(columns: Float[np.ndarray, "b n"], ranks: Float[np.ndarray, "b n"]) -> None:
    """Write the ranks of some columns; the order of their rows takes twice their memory."""
    if np.isnan(columns).any():
        raise HQError("Some values are NaN, which have no rank: trace those texts again.")
    order = np.argsort(columns, axis=1)
    ascending = np.arange(1, columns.shape[1] + 1, dtype=np.float32)
    np.put_along_axis(ranks, order, ascending[None], axis=1)
    ordered = np.take_along_axis(columns, order, axis=1)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    ranks[tied] = rankdata(columns[tied], axis=1)


def ranked_aurocs(
    ranks: Float[np.ndarray, "p n"], labels: Int[np.ndarray, "labelings n"]
) -> Float[np.ndarray, "labelings p"]:
    """Return the AUROC of every column for each labeling of the rows; NaN if it has one class.

    With R the rank sum of the n₁ positives and n₀ negatives, AUROC = (R − n₁(n₁ + 1)/2) / (n₁·n₀)
    (Mann & Whitney 1947).
    """
    n = labels.shape[1]
    exact: type[np.floating[Any]] = np.float32 if n * (n + 1) < _EXACT else np.float64
    of_rows, sums = labels.astype(exact), np.empty((len(labels), len(ranks)))
    for block in column_blocks(len(ranks)):
        # Twice a mean rank is a whole number, so the sums are exact in any order.
        sums[:, block] = np.matmul(of_rows, (2 * ranks[block]).astype(exact).T)
    sums /= 2
    positives = labels.sum(axis=1)[:, None].astype(np.float64)
    pairs = positives * (n - positives)
    areas: Float[np.ndarray, "labelings p"] = np.full(sums.shape, np.nan)
    np.divide(sums - positives * (positives + 1) / 2, pairs, out=areas, where=pairs > 0)
    return areas


def estimate_column_aurocs(
    X: Float[np.ndarray, "n p"],
    labels: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> ColumnEstimates:
    """Return `estimate_auroc` of every column.

    A row's wins are the rows of the other class that it is ranked on the right side of, with ties
    counting one half. The pairs won without unit g are all pairs won, minus the wins of the rows of
    g, plus those among the rows of g, which were subtracted twice.

    Raises HQError as `estimate_auroc`.
    """
    y = np.asarray(labels)
    unit = units_of(len(y), groups)
    estimate_auroc(X[:, 0], y, unit)  # raises if labels or units admit no AUROC
    order = np.argsort(unit, kind="stable")
    members = _Members(unit[order], y[order] == 1)
    parts = [_block(X[order, block], members) for block in column_blocks(X.shape[1])]
    estimates = ColumnEstimates(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    for column in np.flatnonzero((estimates.value == 0) | (estimates.value == 1)):
        exact = estimate_auroc(X[:, column], y, unit)
        estimates.low[column], estimates.high[column] = exact.low, exact.high
    return estimates


class _Members:
    """Rows in the order of their units."""

    def __init__(self, unit: Int[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> None:
        self.positive = positive
        self.starts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]])
        self.sizes = np.diff(np.r_[self.starts, len(unit)]).astype(np.float64)
        self.of_unit = csr_array(
            (np.ones(len(unit)), np.arange(len(unit)), np.r_[self.starts, len(unit)])
        )
        self.positives = self.of_unit @ positive.astype(np.float64)
        self.pairs = (positive.sum() - self.positives) * (
            (~positive).sum() - (self.sizes - self.positives)
        )


def _block(X: Float[np.ndarray, "n p"], members: _Members) -> ColumnEstimates:
    positive = members.positive
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    ranks = column_ranks(X).astype(np.float64).T
    wins = np.empty(X.shape)
    wins[positive] = ranks[positive] - column_ranks(X[positive]).T
    wins[~positive] = n_pos - (ranks[~positive] - column_ranks(X[~positive]).T)
    won = wins[positive].sum(axis=0)
    value = won / (n_pos * n_neg)
    within = np.stack([_won_within(X, positive, unit) for unit in _ranges(members)])
    left = won - members.of_unit @ wins + within
    without = left / members.pairs[:, None]
    squares = (without - without.mean(axis=0)) ** 2
    units = len(members.sizes)
    se = np.sqrt((units - 1) / units * squares.sum(axis=0))
    half = student_t.ppf(0.975, _degrees_of_freedom(squares, members.sizes)) * se
    slope = value * (1 - value)
    inside = slope > 0
    scaled = np.divide(half, slope, out=np.zeros_like(half), where=inside)
    centre = logit(np.where(inside, value, 0.5))
    return ColumnEstimates(value, expit(centre - scaled), expit(centre + scaled))


def _ranges(members: _Members) -> Iterator[slice]:
    for start, size in zip(members.starts.tolist(), members.sizes.astype(int), strict=True):
        yield slice(start, start + size)


def _won_within(
    X: Float[np.ndarray, "n p"], positive: Bool[np.ndarray, " n"], unit: slice
) -> Float[np.ndarray, " p"]:
    """Pairs of rows of one unit that the positive wins."""
    rows, is_positive = X[unit], positive[unit]
    negatives = rows[~is_positive]
    won = np.zeros(X.shape[1])
    for row in rows[is_positive]:
        won += (row > negatives).sum(axis=0) + (row == negatives).sum(axis=0) / 2
    return won


def _degrees_of_freedom(
    squares: Float[np.ndarray, "unit p"], sizes: Float[np.ndarray, " unit"]
) -> Float[np.ndarray, " p"]:
    """`hq.stats.intervals.degrees_of_freedom` of every column."""
    total = squares.sum(axis=0)
    shares = np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)
    linear, quadratic = (sizes**power / (sizes**power).sum() for power in (1, 2))
    low, high = float(sizes @ linear), float(sizes @ quadratic)
    mixture = np.clip((sizes @ shares - low) / (high - low), 0, 1) if high > low else 0 * total
    variance = (
        (1 - mixture) ** 2 * (linear @ linear)
        + 2 * mixture * (1 - mixture) * (linear @ quadratic)
        + mixture**2 * (quadratic @ quadratic)
    )
    return np.where(total > 0, np.maximum(1, 1 / variance - 1), len(sizes) - 1)
