"""Has an effect been preserved, or changed? Equivalence tests, and p-values beside them.

That a difference is not significant does not say that it is small: "preserved" needs an interval
that lies within a margin set beforehand.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from hq.errors import HQError
from hq.stats.bootstrap import Estimate, Replicates, Statistic, auroc, replicates_of

# A half-width this many times too large needs 10^12 times the units: they will never be gathered.
_HOPELESS = 1e6


class Equivalence(StrEnum):
    """What the data say of a difference and a margin."""

    PRESERVED = "preserved"
    CHANGED = "changed"
    UNDECIDED = "not decided at this n"


@dataclass(frozen=True)
class EquivalenceResult:
    """A verdict, and all that it rests on."""

    verdict: Equivalence
    difference: Estimate  # with its 95% interval
    low90: float
    high90: float
    margin: float
    tost_p: float
    n: int  # independent units: groups where there are groups, else rows
    n_needed: int | None  # see `equivalence`


def equivalence(
    statistic: Statistic,
    n: int,
    margin: float,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
    name: str = "difference",
) -> EquivalenceResult:
    """Whether a difference lies within ±margin: two one-sided tests (TOST, Schuirmann 1987).

    PRESERVED where the 90% bootstrap interval lies inside (−margin, margin), which is both
    one-sided tests at 5%; also where the difference is visible (its 95% interval excludes 0) but
    so small that it is negligible. CHANGED where the 95% interval excludes 0 and the 90% interval
    is not inside the margin: there is a difference, and it has not been shown to be negligible,
    nor to exceed the margin. UNDECIDED otherwise.

    `tost_p` is the larger of the two one-sided (1 + #{draws ≤ −margin}) / (1 + replicates) and
    (1 + #{draws ≥ margin}) / (1 + replicates); it and the interval can disagree by a replicate or
    two around 5%. Where no row differs, no resample does, and any n is PRESERVED: mind `n`.

    `n_needed` is for UNDECIDED: the number N > n of independent units at which a decision would
    fall if the difference d stayed as it is, and the half-widths h90 and h95 of the intervals, as
    centred on d, shrank with 1/√N. It is the smallest N with
    |d| + h90·√(n/N) < margin where |d| < margin (PRESERVED), or
    |d| − h95·√(n/N) > 0 where |d| > margin (CHANGED).
    None where it is decided, where |d| is the margin (no n settles on which side it lies), and
    where N would exceed 10^12·n. As d itself will move, N is an order of magnitude, no promise.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise HQError(f"The margin {margin} is no positive number: say how much is negligible.")
    found = replicates_of(statistic, n, seed, replicates, groups, name)
    difference = found.estimate(seed)
    low90, high90 = found.interval(0.05)
    verdict = _verdict(difference, low90, high90, margin)
    needed = None
    if verdict is Equivalence.UNDECIDED:
        needed = _units_needed(difference, (high90 - low90) / 2, margin)
    return EquivalenceResult(
        verdict, difference, low90, high90, margin, _tost_p(found, margin), found.units, needed
    )


def _verdict(difference: Estimate, low90: float, high90: float, margin: float) -> Equivalence:
    if -margin < low90 and high90 < margin:
        return Equivalence.PRESERVED
    if difference.low > 0 or difference.high < 0:
        return Equivalence.CHANGED
    return Equivalence.UNDECIDED


def _tost_p(found: Replicates, margin: float) -> float:
    beyond = max(int((found.draws <= -margin).sum()), int((found.draws >= margin).sum()))
    return (1 + beyond) / (1 + len(found.draws))


def _units_needed(difference: Estimate, h90: float, margin: float) -> int | None:
    """Smallest N > n with h·√(n/N) < room, the room that the decisive half-width h must fit."""
    size = abs(difference.value)
    if math.isclose(size, margin, rel_tol=1e-9):
        return None
    h95 = (difference.high - difference.low) / 2
    half, room = (h90, margin - size) if size < margin else (h95, size)
    if half > _HOPELESS * room:
        return None
    return max(difference.n, math.floor(difference.n * (half / room) ** 2)) + 1


def holm(p_values: ArrayLike) -> Float[np.ndarray, " m"]:
    """Step-down adjusted p-values, which control the family-wise error (Holm 1979).

    With p_(1) ≤ … ≤ p_(m): max over j ≤ i of min(1, (m − j + 1)·p_(j)), in the order given.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise HQError("p-values must be one number from 0 to 1 per test: compute the others again.")
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted: Float[np.ndarray, " m"] = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def permutation_p(
    scores: ArrayLike, labels: ArrayLike, seed: int, permutations: int = 2000
) -> float:
    """One-sided p-value that the AUROC exceeds 1/2, from labels permuted over all rows.

    (1 + #{AUROC of permuted labels ≥ AUROC}) / (1 + permutations), so never below
    1 / (permutations + 1) (Phipson & Smyth 2010). The AUROC grows with the rank sum of the
    positives, ties having their mean rank (Mann & Whitney 1947): U = R − n₁(n₁ + 1) / 2 and
    AUROC = U / (n₁·n₀), so that only ranks are added up, exactly.
    The rows must be independent: with several rows of one entity, p is too small.
    """
    if permutations < 1:
        raise HQError(f"{permutations} permutations give no p-value: ask for at least one.")
    auroc(scores, labels)  # refuses what has no AUROC
    ranks, positive = rankdata(scores), np.asarray(labels) == 1
    observed, count = ranks[positive].sum(), int(positive.sum())
    rng = np.random.default_rng(seed)
    as_high = sum(
        bool(rng.permutation(ranks)[:count].sum() >= observed) for _ in range(permutations)
    )
    return (1 + as_high) / (1 + permutations)
