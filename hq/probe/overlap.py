"""Overlap of two sets of neurons, and its expectation and p-value under random selection."""

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


def overlap_p_value(common: int, k1: int, k2: int, p: int) -> float:
    """P(overlap ≥ common) for sets of k1 and k2 neurons drawn at random out of p."""
    _check_sizes(k1, k2, p)
    return float(hypergeom.sf(common - 1, p, k1, k2))


def _check_sizes(k1: int, k2: int, p: int) -> None:
    if not (0 < k1 <= p and 0 < k2 <= p):
        raise HQError(f"Sets of {k1} and {k2} neurons cannot be drawn from {p}: check the sizes.")
