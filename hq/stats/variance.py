"""Decomposition of the variance of values by the levels of a factor."""

import numpy as np
from jaxtyping import Float, Shaped

from hq.errors import HQError


def share_between(values: Float[np.ndarray, " n"], levels: Shaped[np.ndarray, " n"]) -> float:
    """Return η² of a one-way analysis of variance: the share of the variance between levels.

    Σ_l n_l·(mean_l − mean)² ÷ Σ_i (v_i − mean)²; 0 if all values are equal. In a design in which
    the levels of all factors are combined equally often, the shares of the factors and of their
    interactions add up to 1. Raises HQError if there are no values, or another number of levels.
    """
    if len(values) == 0 or len(values) != len(levels):
        raise HQError(
            f"There are {len(values)} values and {len(levels)} levels: give one level per value."
        )
    total = float(((values - values.mean()) ** 2).sum())
    if total <= (1e-12 * np.abs(values).max()) ** 2 * len(values):  # rounding
        return 0.0
    level = np.unique(levels, return_inverse=True)[1]
    sizes = np.bincount(level)
    means = np.bincount(level, values) / sizes
    return float((sizes * (means - values.mean()) ** 2).sum()) / total
