"""Equivalence tests of a difference (preserved, changed or undecided), and p-values.

A difference that is not significant need not be small: "preserved" requires an interval within a
margin that was chosen in advance.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from scipy.stats import t as student_t

from hq.errors import HQError
from hq.stats.auroc import auroc
from hq.stats.intervals import Estimate, Statistic, estimate

# A half-width this many times too large needs 10^12 times the units, which is not feasible.
_HOPELESS = 1e6


class Equivalence(StrEnum):
    """Verdict on a difference and a margin."""

    PRESERVED = "preserved"
    CHANGED = "changed"
    UNDECIDED = "not decided at this n"


@dataclass(frozen=True)
class EquivalenceResult:
    """A verdict and the figures that it follows from."""

    verdict: Equivalence
    difference: Estimate  # with its 95% interval, and the number of units
    low90: float
    high90: float
    margin: float
    tost_p: float
    n_needed: int | None  # see `equivalence`


def equivalence(
    statistic: Statistic,
    n: int,
    margin: float,
    groups: Shaped[np.ndarray, " n"] | None = None,
    name: str = "difference",
) -> EquivalenceResult:
    """Test whether a difference lies within ±margin: two one-sided tests (TOST, Schuirmann 1987).

    PRESERVED: the 90% interval lies inside (−margin, margin), which is both one-sided tests at 5%.
    The 95% interval may still exclude 0: the difference is then significant but negligible.
    CHANGED: the 95% interval excludes 0 and the 90% interval is not inside the margin: there is a
    difference, which is shown neither to be negligible nor to exceed the margin.
    UNDECIDED: otherwise.

    Intervals and p-values are those of Student's t with the jackknife standard error and its
    degrees of freedom (`hq.stats.intervals.estimate`). `tost_p` is the larger p-value of the two
    one-sided tests: P(T ≥ (d + margin)/se) and P(T ≤ (d − margin)/se) for the difference d. If no
    row differs, se is 0, and the verdict is PRESERVED with p = 0 at any n.

    `n_needed`, if UNDECIDED, is the number N > n of independent units at which there would be a
    decision if the difference d stayed the same and the half-widths h90 and h95 of the intervals,
    centred on d, shrank with 1/√N. It is the smallest N with
    |d| + h90·√(n/N) < margin if |d| < margin (PRESERVED), or
    |d| − h95·√(n/N) > 0 if |d| > margin (CHANGED).
    It is None if there is a decision, if |d| equals the margin, and if N would exceed 10^12·n. As d
    will change with more data, N is only an order of magnitude.
    """
    return decide(estimate(statistic, n, groups, name), margin)


def decide(difference: Estimate, margin: float, fixed: float = 0.0) -> EquivalenceResult:
    """Return the verdict of `equivalence` on an estimated difference.

    Args:
        difference: The difference, with its standard error.
        margin: The largest negligible difference.
        fixed: Share of the variance that more units do not reduce, such as that of an independent
            reference. `n_needed` is None if this share alone makes the interval too wide.

    Raises:
        HQError: If the margin is not a positive number.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise HQError(
            f"The margin {margin} is not a positive number: name the largest negligible difference."
        )
    low90, high90 = difference.interval(0.9)
    verdict = _verdict(difference, low90, high90, margin)
    needed = None
    if verdict is Equivalence.UNDECIDED:
        needed = _units_needed(difference, (high90 - low90) / 2, margin, fixed)
    return EquivalenceResult(
        verdict, difference, low90, high90, margin, _tost_p(difference, margin), needed
    )


def _verdict(difference: Estimate, low90: float, high90: float, margin: float) -> Equivalence:
    if -margin < low90 and high90 < margin:
        return Equivalence.PRESERVED
    if difference.low > 0 or difference.high < 0:
        return Equivalence.CHANGED
    return Equivalence.UNDECIDED


def _tost_p(difference: Estimate, margin: float) -> float:
    d, se, df = difference.value, difference.se, difference.df
    if not se:
        return 0.0 if abs(d) < margin else 1.0
    return float(max(student_t.sf((d + margin) / se, df), student_t.cdf((d - margin) / se, df)))


def _units_needed(difference: Estimate, h90: float, margin: float, fixed: float) -> int | None:
    """Return the smallest N > n with h·√(n/N) < room, for the half-width h that decides.

    With a fixed share s of the variance, h·√(s + (1 − s)·n/N) < room.
    """
    size = abs(difference.value)
    if math.isclose(size, margin, rel_tol=1e-9):
        return None
    h95 = (difference.high - difference.low) / 2
    half, room = (h90, margin - size) if size < margin else (h95, size)
    if fixed:
        if room**2 <= fixed * half**2:
            return None
        half, room = math.sqrt(1 - fixed) * half, math.sqrt(room**2 - fixed * half**2)
    if half > _HOPELESS * room:
        return None
    return max(difference.n, math.floor(difference.n * (half / room) ** 2)) + 1


def holm(p_values: ArrayLike) -> Float[np.ndarray, " m"]:
    """Return step-down adjusted p-values, which control the family-wise error rate (Holm 1979).

    With p_(1) ≤ … ≤ p_(m): max over j ≤ i of min(1, (m − j + 1)·p_(j)), in the given order.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise HQError(
            "p-values must be numbers from 0 to 1, one per test: compute the others again."
        )
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted: Float[np.ndarray, " m"] = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def permutation_p(
    scores: ArrayLike, labels: ArrayLike, seed: int, permutations: int = 2000
) -> float:
    """One-sided p-value of an AUROC above 1/2, from labels permuted over all rows.

    (1 + #{AUROC of permuted labels ≥ AUROC}) / (1 + permutations), which is at least
    1 / (permutations + 1) (Phipson & Smyth 2010). The AUROC increases with the rank sum R of the
    positives, with mean ranks for ties (Mann & Whitney 1947): U = R − n₁(n₁ + 1) / 2 and
    AUROC = U / (n₁·n₀), so rank sums are compared, which are exact. Rows must be independent: with
    several rows per entity, p is too small.
    """
    if permutations < 1:
        raise HQError(
            f"A p-value needs at least one permutation, not {permutations}: ask for more."
        )
    auroc(scores, labels)  # raises if the AUROC is undefined
    ranks, positive = rankdata(scores), np.asarray(labels) == 1
    observed, count = ranks[positive].sum(), int(positive.sum())
    rng = np.random.default_rng(seed)
    as_high = sum(
        bool(rng.permutation(ranks)[:count].sum() >= observed) for _ in range(permutations)
    )
    return (1 + as_high) / (1 + permutations)
