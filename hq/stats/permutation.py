"""Null distributions by labels that are flipped in whole units, and p-values from them."""

import numpy as np
from jaxtyping import Float, Int, Shaped

from hq.errors import HQError
from hq.stats.intervals import units_of

_BALANCED = 0.1  # largest distance of the share of positives from one half


def flipped_labels(
    labels: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"] | None,
    draws: int,
    seed: int,
) -> Int[np.ndarray, "draws n"]:
    """Return labels in which 0 and 1 are exchanged in a random half of the units, for each draw.

    If labels are unrelated to the values of the rows, and balanced, these labels are as likely as
    the given ones, however rows of a unit depend on each other. Permuting labels over rows would
    break up the units: the null distribution would be too narrow.

    Raises HQError if fewer than 40% of the labels are of one class.
    """
    unit = units_of(len(labels), groups)
    share = float(np.mean(labels))
    if abs(share - 0.5) > _BALANCED:
        raise HQError(
            f"{share:.0%} of the labels are 1, and flipping labels by unit needs about as many of "
            "each class: balance the samples."
        )
    flips = np.random.default_rng(seed).integers(0, 2, (draws, int(unit.max()) + 1))
    return np.asarray(labels ^ flips[:, unit], dtype=np.int64)


def rank_p(observed: Float[np.ndarray, " p"], null: Float[np.ndarray, "draws p"]) -> np.ndarray:
    """Return (1 + #{null ≥ observed}) / (1 + draws) per column (Phipson & Smyth 2010)."""
    as_large = (null >= observed - 1e-12).sum(axis=0)
    return np.asarray((1 + as_large) / (1 + len(null)), dtype=np.float64)


def maximum_p(
    observed: Float[np.ndarray, " p"], maxima: Float[np.ndarray, " draws"]
) -> Float[np.ndarray, " p"]:
    """Return p-values that control the family-wise error over all columns (Westfall & Young 1993).

    Each is the share of draws whose largest value over all columns reaches the observed one
    (single-step maxT). Holm's correction over p columns needs more than p/0.05 draws instead.
    """
    ascending = np.sort(maxima)
    as_large = len(maxima) - np.searchsorted(ascending, observed - 1e-12, side="left")
    return np.asarray((1 + as_large) / (1 + len(maxima)), dtype=np.float64)
