"""Comparisons of detectors on the same rows: everything that they take is imported from here.

| comparison | rows in units or folds | independent rows |
|---|---|---|
| AUROCs | `estimate_auroc_difference`, then `two_sided_p` | `delong` |
| right and wrong calls, accuracies | `mcnemar` with `groups` | `mcnemar` |
| several comparisons at once | `holm` on their p-values | `holm` |
| is the difference negligible? | `decide`, `equivalence` (TOST) | the same |
| which difference would be seen? | `smallest_detectable` | the same |

Rows of a study are not independent, so its tables use the column on the left. `delong` and
`mcnemar` without groups are for data of single rows, and to compare with published figures.
`docs/statistics.md` has the formulas, and how often each test rejects a true hypothesis.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from scipy.stats import binom, norm, rankdata
from scipy.stats import t as student_t

from hq.errors import HQError
from hq.stats.auroc import auroc, estimate_auroc_difference
from hq.stats.equivalence import decide, equivalence, holm
from hq.stats.intervals import Estimate, estimate, mean_statistic, smallest_detectable, units_of

__all__ = [
    "DeLong",
    "McNemar",
    "decide",
    "delong",
    "equivalence",
    "estimate_auroc_difference",
    "holm",
    "mcnemar",
    "smallest_detectable",
    "two_sided_p",
]


def two_sided_p(difference: Estimate) -> float:
    """Return the two-sided p-value of a difference of 0: P(|T| ≥ |difference|/se), Student's t.

    It is below 5% exactly if the 95% interval of the difference excludes 0. If no unit changes the
    difference, se is 0, and p is 1 for a difference of 0, else 0. Raises HQError if the estimate
    has no standard error.
    """
    if difference.se is None or difference.df is None:
        raise HQError(
            f"The difference {difference} has no standard error: use one over rows, not a mean "
            "over draws."
        )
    if difference.value == 0:
        return 1.0
    if difference.se == 0:
        return 0.0
    return float(2 * student_t.sf(abs(difference.value) / difference.se, difference.df))


@dataclass(frozen=True)
class DeLong:
    """AUROCs of k scores on the same independent rows, and the covariance of their estimates."""

    aurocs: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]
    n: int  # rows

    def difference(self, first: int, second: int) -> Estimate:
        """AUROC of one score minus that of another, with its normal 95% interval.

        The degrees of freedom are infinite, so that `two_sided_p`, `decide` and
        `smallest_detectable` of the estimate use the normal distribution.
        """
        value = float(self.aurocs[first] - self.aurocs[second])
        contrast = np.zeros(len(self.aurocs))
        contrast[first] += 1
        contrast[second] -= 1
        se = float(np.sqrt(max(0.0, contrast @ self.covariance @ contrast)))
        half = float(norm.ppf(0.975)) * se
        return Estimate(
            value=value, low=value - half, high=value + half, n=self.n, se=se, df=np.inf
        )


def delong(scores: Float[np.ndarray, "k n"], labels: ArrayLike) -> DeLong:
    """Return the AUROCs of k scores and their covariance (DeLong, DeLong & Clarke-Pearson 1988).

    With the placement values V10_i, the share of the n0 negatives that positive i exceeds, and
    V01_j, the share of the n1 positives that exceed negative j (ties count one half), the
    covariance is cov(V10)/n1 + cov(V01)/n0. Placements follow from mid-ranks R among all rows and
    among those of a class: V10_i = (R_i − R_i of the positives)/n0, V01_j = 1 − (R_j − R_j of the
    negatives)/n1, in O(k n log n) (Sun & Xu 2014, "Fast implementation of DeLong's algorithm",
    IEEE Signal Processing Letters 21, 1389–1393).

    Rows must be independent: with several rows per unit, use `estimate_auroc_difference`.

    Raises:
        HQError: If `scores` is not [k, n], a class has fewer than two rows, or as `auroc`.
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if s.ndim != 2 or len(s) == 0:
        raise HQError(f"Scores have the shape {s.shape}: give one row per score, as [k, n].")
    aurocs = np.array([auroc(row, y) for row in s])
    positive = y == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if min(n1, n0) < 2:
        raise HQError(
            f"DeLong's variance needs two rows or more of each class, not {n1} and {n0}: collect "
            "more."
        )
    ranks = rankdata(s, axis=1)
    v10 = (ranks[:, positive] - rankdata(s[:, positive], axis=1)) / n0
    v01 = 1 - (ranks[:, ~positive] - rankdata(s[:, ~positive], axis=1)) / n1
    covariance = np.atleast_2d(np.cov(v10)) / n1 + np.atleast_2d(np.cov(v01)) / n0
    return DeLong(aurocs, covariance, len(y))


@dataclass(frozen=True)
class McNemar:
    """Right and wrong calls of two detectors on the same rows."""

    only_first: int  # rows on which only the first detector is right
    only_second: int
    difference: Estimate  # accuracy of the first minus that of the second
    p: float  # exact and two-sided


def mcnemar(
    right_a: ArrayLike, right_b: ArrayLike, groups: Shaped[np.ndarray, " n"] | None = None
) -> McNemar:
    """Test whether two detectors are right equally often: McNemar's exact test, by unit.

    Let d_g be the number of rows of unit g on which only the first detector is right, minus that of
    the second. If the detectors are interchangeable within units, each d_g has either sign with the
    same probability, so p is the share of all combinations of signs with |Σ ±d_g| ≥ |Σ d_g|, which
    is computed exactly (Fisher 1935, "The design of experiments"). For single rows,
    this is McNemar's exact test (1947), which is binomial; for many units, its normal
    approximation is the test of Obuchowski (1998, "On the comparison of correlated proportions for
    clustered data", Statistics in Medicine 17, 1495–1507).

    The interval of the difference of the accuracies is the jackknife's over units (`estimate`).
    Very near 5%, it can include 0 where p does not, and vice versa.

    Args:
        right_a: For each row, whether the first detector is right: its call is the label.
        right_b: The same for the second detector.
        groups: Unit of each row; by default, each row is a unit.

    Raises:
        HQError: If the calls are not 0 or 1, differ in number, or belong to fewer than two units.
    """
    a, b = np.asarray(right_a), np.asarray(right_b)
    if a.ndim != 1 or a.shape != b.shape:
        raise HQError(
            f"Calls of shapes {a.shape} and {b.shape} cannot be paired: give one of each per row."
        )
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise HQError("Calls must be right (1) or wrong (0): compare calls with labels first.")
    change = a.astype(np.int64) - b.astype(np.int64)
    unit = units_of(len(change), groups)
    per_unit = np.bincount(unit, change).astype(np.int64)
    return McNemar(
        only_first=int((change > 0).sum()),
        only_second=int((change < 0).sum()),
        difference=estimate(
            mean_statistic(change.astype(np.float64)), len(change), unit, "difference of accuracies"
        ),
        p=_sign_flip_p(per_unit),
    )


def _sign_flip_p(differences: Int[np.ndarray, " unit"]) -> float:
    """Return P(|Σ ±d_g| ≥ |Σ d_g|) for independent, equally probable signs.

    The sum of the c units with |d_g| = m is m·(2K − c) with K binomial, and sums of different m are
    convolved.
    """
    probabilities = np.ones(1)  # of the sums from −total to total
    for m, count in zip(*np.unique(np.abs(differences), return_counts=True), strict=True):
        if m > 0:
            of_size = np.zeros(2 * m * count + 1)
            of_size[:: 2 * m] = binom.pmf(np.arange(count + 1), count, 0.5)
            probabilities = np.convolve(probabilities, of_size)
    sums = np.arange(len(probabilities)) - len(probabilities) // 2
    extreme = np.abs(sums) >= abs(int(differences.sum()))
    return min(1.0, float(probabilities[extreme].sum()))
