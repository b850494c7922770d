"""Overlap of sets of neurons: its size, its expectation and p-value under random selection."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Int
from scipy.stats import hypergeom

from hq.errors import HQError


def jaccard(a: Int[np.ndarray, " k1"], b: Int[np.ndarray, " k2"]) -> float:
    """|A ∩ B| / |A ∪ B| of two sets of flat indices. Raises HQError if both are empty."""
    union = len(np.union1d(a, b))
    if union == 0:
        raise HQError("Both sets of neurons are empty: identify neurons before comparing them.")
    return len(np.intersect1d(a, b)) / union


def expected_jaccard(k1: int, k2: int, p: int) -> float:
    """Expectation of `jaccard` for sets of k1 and k2 neurons drawn at random out of p.

    Exact: the overlap m is hypergeometric, and J = m / (k1 + k2 − m).
    """
    _check_sizes(k1, k2, p)
    m = np.arange(max(0, k1 + k2 - p), min(k1, k2) + 1)
    return float(np.sum(hypergeom.pmf(m, p, k1, k2) * m / (k1 + k2 - m)))


def mean_jaccard(sets: Sequence[Int[np.ndarray, " k"]], p: int) -> tuple[float, float]:
    """Return the mean Jaccard index over all pairs of sets, and its expectation by chance.

    Raises HQError if there are fewer than two sets, or if one is empty.
    """
    pairs = list(combinations(sets, 2))
    if not pairs:
        raise HQError("An overlap needs two sets of neurons or more: give another one.")
    observed = [jaccard(a, b) for a, b in pairs]
    expected = [expected_jaccard(len(a), len(b), p) for a, b in pairs]
    return float(np.mean(observed)), float(np.mean(expected))


def consistency(sets: Sequence[Int[np.ndarray, " k"]], p: int) -> float:
    """Return the stability of a selection, corrected for chance (Nogueira, Sechidis & Brown 2018).

    Φ = 1 − [Σ_f s_f² ÷ p] ÷ [k̄/p · (1 − k̄/p)], with s_f² = M/(M − 1)·π_f·(1 − π_f), where π_f is
    the share of the M sets that contain neuron f, and k̄ the mean size ("On the stability of feature
    selection algorithms", JMLR 18, definition 4). 1 if all sets are equal. For sets of equal
    size, it is 0 on average if they are random, and the mean over pairs of the index of Kuncheva
    (2007, "A stability index for feature selection"), (r·p − k²) ÷ (k·(p − k)), with r neurons in
    common.

    Raises HQError if there are fewer than two sets, or if all are empty or contain every neuron.
    """
    M, sizes = len(sets), np.array([len(np.unique(s)) for s in sets])
    share = float(sizes.mean()) / p if M else 0.0
    if M < 2 or not 0 < share < 1:
        raise HQError(
            f"{M} sets with {sizes.tolist()} of {p} neurons have no consistency: give two or more "
            "that are not empty."
        )
    counts = np.bincount(np.concatenate([np.unique(s) for s in sets]), minlength=p) / M
    variance = M / (M - 1) * (counts * (1 - counts)).sum() / p
    return float(1 - variance / (share * (1 - share)))


def overlap_p_value(common: int, k1: int, k2: int, p: int) -> float:
    """P(overlap ≥ common) for sets of k1 and k2 neurons drawn at random out of p."""
    _check_sizes(k1, k2, p)
    return float(hypergeom.sf(common - 1, p, k1, k2))


def _check_sizes(k1: int, k2: int, p: int) -> None:
    if not (0 < k1 <= p and 0 < k2 <= p):
        raise HQError(f"Sets of {k1} and {k2} neurons cannot be drawn from {p}: check the sizes.")
