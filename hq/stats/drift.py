"""Change of a distribution of scores: population stability index, Kolmogorov–Smirnov, p-values.

Both statistics need no labels. Their usual null distributions are for independent rows; rows of
one unit are not independent, so p-values are those of permutations of whole units.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy.typing import ArrayLike

from hq.errors import HQError

BINS = 10
_CHUNK = 2**20  # rows × permutations at a time


@dataclass(frozen=True)
class ScoreShift:
    """How far scores moved from a reference; p-values are None if its units are unknown."""

    psi: float
    psi_p: float | None
    ks: float
    ks_p: float | None


def population_stability_index(reference: ArrayLike, new: ArrayLike, bins: int = BINS) -> float:
    """Return the population stability index Σ_b (q_b − p_b)·ln(q_b / p_b).

    Bins are delimited by the quantiles of the reference; p_b and q_b are the shares of the
    reference and of the new scores in bin b, after half a count is added to each bin, so that an
    empty one has a logarithm. It is the symmetrised Kullback–Leibler divergence of Jeffreys (1946).
    The usual bounds of 0.1 and 0.25 have no error rate: without a change, its expectation is about
    (bins − 1)·(1/n + 1/m) for n and m independent rows (Yurdakul & Naranjo 2020, "Statistical
    properties of the population stability index").
    """
    a, b = _scores(reference, "reference"), _scores(new, "new")
    if bins < 2:
        raise HQError(f"The population stability index needs two bins or more, not {bins}.")
    return _psi(np.sort(a), np.sort(b), bins)


def ks_statistic(reference: ArrayLike, new: ArrayLike) -> float:
    """Return the largest difference of the empirical distribution functions of two samples."""
    a, b = _scores(reference, "reference"), _scores(new, "new")
    pooled = np.concatenate([a, b])
    is_new = np.arange(len(pooled)) >= len(a)
    return float(_ks(pooled)(is_new[None])[0])


def score_shift(
    reference: ArrayLike,
    new: ArrayLike,
    reference_units: Shaped[np.ndarray, " n"] | None,
    new_units: Shaped[np.ndarray, " m"] | None,
    seed: int = 0,
    permutations: int = 999,
) -> ScoreShift:
    """Return both statistics with p-values from permutations of whole units.

    A unit with rows in both samples, such as a text at two precisions, exchanges its two parts with
    a probability of 1/2. Units with rows in one sample are assigned to the samples at random, with
    the numbers of units unchanged. Under the null hypothesis these exchanges leave the distribution
    unchanged, so the test keeps its level whatever the dependence within a unit. The p-value is
    (1 + #{statistic ≥ observed}) / (1 + permutations) (Phipson & Smyth 2010).

    Args:
        reference: Scores of the reference.
        new: New scores.
        reference_units: Unit of each reference score; None if unknown, which leaves out p-values.
        new_units: Unit of each new score; None if unknown.
        seed: Seed of the permutations.
        permutations: Their number.
    """
    a, b = _scores(reference, "reference"), _scores(new, "new")
    psi, ks = population_stability_index(a, b), ks_statistic(a, b)
    if reference_units is None or new_units is None:
        return ScoreShift(psi, None, ks, None)
    pooled = np.concatenate([a, b])
    order = np.argsort(pooled, kind="stable")
    ascending = pooled[order]
    statistic, as_large = _ks(pooled), np.zeros(2, dtype=np.int64)
    exchanged = _exchanged(reference_units, new_units, np.random.default_rng(seed))
    chunk = max(1, _CHUNK // len(pooled))
    for start in range(0, permutations, chunk):
        sides = np.stack([exchanged() for _ in range(min(chunk, permutations - start))])
        indices = [_psi(ascending[~side], ascending[side], BINS) for side in sides[:, order]]
        # Rounding must not separate equal statistics.
        as_large += [
            int((np.array(indices) >= psi - 1e-12).sum()),
            int((statistic(sides) >= ks - 1e-12).sum()),
        ]
    psi_p, ks_p = ((1 + as_large) / (1 + permutations)).tolist()
    return ScoreShift(psi, psi_p, ks, ks_p)


def _exchanged(
    reference: Shaped[np.ndarray, " n"],
    new: Shaped[np.ndarray, " m"],
    rng: np.random.Generator,
) -> Callable[[], Bool[np.ndarray, " n_plus_m"]]:
    """Return a function that draws which rows of the pooled sample count as new."""
    # Compared as text: the two samples may come from different files.
    names = np.concatenate([np.asarray(reference).astype(str), np.asarray(new).astype(str)])
    unit = np.unique(names, return_inverse=True)[1]
    is_new = np.arange(len(unit)) >= len(reference)
    units = int(unit.max()) + 1
    in_new = np.bincount(unit[is_new], minlength=units) > 0
    in_both = in_new & (np.bincount(unit[~is_new], minlength=units) > 0)

    def draw() -> Bool[np.ndarray, " n_plus_m"]:
        side = in_new.copy()
        side[~in_both] = rng.permutation(in_new[~in_both])
        swapped = rng.random(units) < 0.5
        return np.where(in_both[unit], is_new ^ swapped[unit], side[unit])

    return draw


def _ks(
    pooled: Float[np.ndarray, " n"],
) -> Callable[[Bool[np.ndarray, "permutation n"]], Float[np.ndarray, " permutation"]]:
    """Return the statistic as a function of which rows are new; rows are sorted once."""
    order = np.argsort(pooled, kind="stable")
    ascending = pooled[order]
    ends = np.flatnonzero(np.r_[ascending[1:] != ascending[:-1], True])  # of runs of equal scores

    def statistic(is_new: Bool[np.ndarray, "permutation n"]) -> Float[np.ndarray, " permutation"]:
        below_new = np.cumsum(is_new[:, order], axis=1)
        below_old = np.arange(1, len(order) + 1) - below_new
        n_new, n_old = below_new[:, -1:], below_old[:, -1:]
        difference = below_new[:, ends] / n_new - below_old[:, ends] / n_old
        largest: Float[np.ndarray, " permutation"] = np.abs(difference).max(axis=1)
        return largest

    return statistic


def _psi(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], bins: int) -> float:
    """Return the index of sorted scores; quantiles are interpolated linearly."""
    position = (len(a) - 1) * np.arange(1, bins) / bins
    lower = position.astype(np.int64)
    edges = a[lower] + (position - lower) * (a[np.minimum(lower + 1, len(a) - 1)] - a[lower])
    edges = np.unique(edges)
    p, q = (_shares(s, edges) for s in (a, b))
    return float(((q - p) * np.log(q / p)).sum())


def _shares(
    ascending: Float[np.ndarray, " n"], edges: Float[np.ndarray, " edge"]
) -> Float[np.ndarray, " bin"]:
    """Return the share in each bin, after half a count is added; an edge is in the upper bin."""
    below = np.searchsorted(ascending, edges, side="left")
    counts = np.diff(below, prepend=0, append=len(ascending)) + 0.5
    shares: Float[np.ndarray, " bin"] = counts / counts.sum()
    return shares


def _scores(values: ArrayLike, name: str) -> Float[np.ndarray, " n"]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
        raise HQError(
            f"The {name} scores must be one finite number per row: trace the texts again."
        )
    return scores
