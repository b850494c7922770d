"""Estimates with bootstrap intervals: AUROC, means, and their paired differences.

A statistic is a function of row weights [replicates, n]. A resample is a row of counts, so rows are
sorted once and never copied.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from hq.errors import HQError

ResampleWeights = Float[np.ndarray, "replicates n"]
Statistic = Callable[[ResampleWeights], Float[np.ndarray, " replicates"]]

# 2^22 float64 weights are 32 MiB: enough for vectorized operations, small compared with a model.
_CHUNK = 2**22
_MAX_REDRAWS = 20


class Estimate(BaseModel):
    """A value and its 95% interval.

    `n` is the number of resampled units: groups if there are groups, else rows.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    n: int
    seed: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of_draws(cls, values: Float[np.ndarray, " draws"], seed: int) -> Self:
        """Mean over draws with the interval that contains 95% of them; `n` is their number."""
        low, high = np.quantile(values, [0.025, 0.975])
        return cls(
            value=float(values.mean()), low=float(low), high=float(high), n=len(values), seed=seed
        )


class Replicates(NamedTuple):
    """The value of a statistic, and its values on bootstrap resamples."""

    value: float
    draws: Float[np.ndarray, " replicates"]
    units: int  # number of groups if there are groups, else of rows

    def interval(self, tail: float) -> tuple[float, float]:
        """Percentile interval without a share `tail` of the resamples at either end."""
        low, high = np.quantile(self.draws, [tail, 1 - tail])
        return float(low), float(high)

    def estimate(self, seed: int) -> Estimate:
        """Value and 95% interval; `seed` is the seed of the resamples."""
        low, high = self.interval(0.025)
        return Estimate(value=self.value, low=low, high=high, n=self.units, seed=seed)


def bootstrap(
    statistic: Statistic,
    n: int,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
    name: str = "statistic",
) -> Estimate:
    """Percentile bootstrap of a statistic over row weights (Efron & Tibshirani 1993, ch. 13).

    Arguments and errors are those of `replicates_of`.
    """
    return replicates_of(statistic, n, seed, replicates, groups, name).estimate(seed)


def replicates_of(
    statistic: Statistic,
    n: int,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
    name: str = "statistic",
) -> Replicates:
    """Compute a statistic on the rows and on each bootstrap resample.

    Rows are drawn with replacement, or groups of rows if `groups` has the group of each row. A
    resample on which the statistic is undefined (NaN) is drawn again. Raises HQError with the
    statistic's `name` if there are no rows, or if it is undefined on the rows or on nearly every
    resample.
    """
    if n == 0:
        raise HQError("There are no rows to compute an estimate from: check the selection.")
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    if unit.shape != (n,):
        raise HQError(f"There are {len(unit)} groups for {n} rows: give one group per row.")
    units = int(unit.max()) + 1
    value = float(statistic(np.ones((1, n)))[0])
    if np.isnan(value):
        raise HQError(f"The {name} is undefined for these {n} rows: collect more varied data.")
    rng = np.random.default_rng(seed)
    return Replicates(value, _replicate(statistic, unit, units, rng, replicates, name), units)


def _replicate(
    statistic: Statistic,
    unit: Int[np.ndarray, " n"],
    units: int,
    rng: np.random.Generator,
    replicates: int,
    name: str,
) -> Float[np.ndarray, " replicates"]:
    """Return the values on `replicates` defined resamples, computed in chunks of bounded memory."""
    chunk = max(1, _CHUNK // len(unit))
    chunks: list[Float[np.ndarray, " chunk"]] = []
    missing, drawn = replicates, 0
    while missing > 0:
        if drawn > _MAX_REDRAWS * replicates:
            raise HQError(
                f"The {name} is undefined for nearly every resample of these {len(unit)} rows: "
                "collect more rows of the rarer class."
            )
        rows = min(chunk, missing)
        values = statistic(_counts(rng, rows, units)[:, unit].astype(np.float64))
        chunks.append(values[~np.isnan(values)])
        drawn += rows
        missing -= len(chunks[-1])
    return np.concatenate(chunks)


def _counts(rng: np.random.Generator, rows: int, units: int) -> Int[np.ndarray, "rows units"]:
    """Return how often each unit is drawn in `rows` resamples of `units` out of `units`."""
    draws = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
    return np.bincount(draws.ravel(), minlength=rows * units).reshape(rows, units)


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: P(a positive scores above a negative), ties counting one half.

    O(n log n). Raises HQError if a score is NaN, a label is not 0 or 1, or there is only one class.
    """
    s, y = _two_classes(scores, labels)
    return float(auroc_statistic(s, y)(np.ones((1, len(y))))[0])


def bootstrap_auroc(
    scores: ArrayLike,
    labels: ArrayLike,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """AUROC with its bootstrap interval; resamples of one class are drawn again."""
    s, y = _two_classes(scores, labels)
    return bootstrap(auroc_statistic(s, y), len(y), seed, replicates, groups, "AUROC")


def bootstrap_auroc_difference(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """AUROC of `scores_a` minus AUROC of `scores_b`, paired: both on the same resamples.

    If `scores_b` is [draws, n], the mean AUROC of its rows is subtracted.
    """
    a, y = _two_classes(scores_a, labels)
    first = auroc_statistic(a, y)
    others = [auroc_statistic(_two_classes(b, labels)[0], y) for b in np.atleast_2d(scores_b)]

    def difference(weights: ResampleWeights) -> Float[np.ndarray, " replicates"]:
        subtracted = sum(other(weights) for other in others) / len(others)
        return first(weights) - subtracted

    return bootstrap(difference, len(y), seed, replicates, groups, "difference of AUROCs")


def bootstrap_mean(
    values: ArrayLike,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """Mean over rows with its bootstrap interval. Raises HQError if a value is not finite."""
    v = _finite(values, "values")

    def mean(weights: ResampleWeights) -> Float[np.ndarray, " replicates"]:
        result: Float[np.ndarray, " replicates"] = weights @ v / weights.sum(axis=1)
        return result

    return bootstrap(mean, len(v), seed, replicates, groups, "mean")


def auroc_statistic(scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> Statistic:
    """Return the weighted AUROC as a statistic; rows are sorted once, not at each call.

    Over distinct scores t, with positive and negative weights P_t and N_t:
    Σ_t P_t · (Σ_{u<t} N_u + N_t / 2) / (ΣP · ΣN). NaN if a class has no weight.
    """
    order = np.argsort(scores, kind="stable")
    ascending, positive = scores[order], labels[order] == 1
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])

    def statistic(weights: ResampleWeights) -> Float[np.ndarray, " replicates"]:
        sorted_weights = weights[:, order]
        pos = np.add.reduceat(np.where(positive, sorted_weights, 0), starts, axis=1)
        neg = np.add.reduceat(np.where(positive, 0, sorted_weights), starts, axis=1)
        wins = (pos * (np.cumsum(neg, axis=1) - neg / 2)).sum(axis=1)
        pairs = pos.sum(axis=1) * neg.sum(axis=1)
        area: Float[np.ndarray, " replicates"] = np.full(len(wins), np.nan)
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

    def statistic(weights: ResampleWeights) -> Float[np.ndarray, " replicates"]:
        pairs = (weights @ n_pos) * (weights @ n_neg)
        area: Float[np.ndarray, " replicates"] = np.full(len(weights), np.nan)
        np.divide((weights @ wins * weights).sum(axis=1), pairs, out=area, where=pairs > 0)
        return area

    return statistic


def _two_classes(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim != 1 or s.shape != y.shape:
        raise HQError(
            f"Scores {s.shape} and labels {y.shape} differ in shape: give one of each per row."
        )
    if np.isnan(s).any():
        raise HQError(f"{int(np.isnan(s).sum())} of {len(s)} scores are NaN: trace those again.")
    if not np.isin(y, (0, 1)).all():
        raise HQError("Labels must be 0 (right) or 1 (hallucinated): relabel the others.")
    if len(np.unique(y)) < 2:
        raise HQError("The labels contain one class: an AUROC needs right and wrong answers.")
    return s, y.astype(np.int64)


def _finite(values: ArrayLike, name: str) -> Float[np.ndarray, " n"]:
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not np.isfinite(v).all():
        raise HQError(
            f"The {name} must be one finite number per row: remove or correct the others."
        )
    return v
