"""Calibration of a probability: expected calibration error and calibration slope."""

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from scipy.special import expit

from hq.errors import HQError
from hq.stats.intervals import Estimate, Weights, estimate

_STEPS, _TOLERANCE = 30, 1e-8


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 10
) -> float:
    """Return Σ_b n_b/n · |mean label − mean probability| over bins of equal width.

    Naeini, Cooper & Hauskrecht (2015), "Obtaining well calibrated probabilities using Bayesian
    binning"; Guo et al. (2017), "On calibration of modern neural networks". It is biased upwards:
    with few rows per bin it is above 0 for calibrated probabilities too.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 1 or p.shape != y.shape or not ((p >= 0) & (p <= 1)).all():
        raise HQError("A calibration error needs one probability from 0 to 1 per label.")
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    bin_of = np.searchsorted(inner, p)
    gaps = np.bincount(bin_of, y, bins) - np.bincount(bin_of, p, bins)
    return float(np.abs(gaps).sum() / len(p))


def estimate_calibration_slope(
    scores: ArrayLike, labels: ArrayLike, groups: Shaped[np.ndarray, " n"] | None = None
) -> Estimate:
    """Return the slope b of logit P(y = 1) = a + b·score, with its jackknife interval (Cox 1958).

    `scores` are log odds. With b = 1, differences of scores are differences of log odds; a smaller
    slope means that the scores are too extreme, 0 that they say nothing about the label. Raises
    HQError if the scores separate the labels, where the slope is infinite.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    size = float(x.std())
    if not size:
        raise HQError("All scores are equal, so there is no calibration slope: trace more texts.")
    z = (x - x.mean()) / size
    start = _fit(z, y, np.ones((1, len(x))), np.zeros(2))
    # Without one unit, the fit is close to that of all rows.
    return estimate(
        lambda weights: _fit(z, y, weights, start[0])[:, 1] / size,
        len(x),
        groups,
        "calibration slope",
    )


def _fit(
    z: Float[np.ndarray, " n"],
    y: Int[np.ndarray, " n"],
    weights: Weights,
    start: Float[np.ndarray, "2"],
) -> Float[np.ndarray, "weightings 2"]:
    """Return intercepts and slopes by Newton's method; NaN where it does not converge."""
    a, b = (np.full(len(weights), value) for value in start)
    step = np.full(len(weights), np.inf)
    for _ in range(_STEPS):
        p = expit(a[:, None] + b[:, None] * z)
        residual, spread = weights * (y - p), weights * p * (1 - p)
        g0, g1 = residual.sum(axis=1), residual @ z
        h00, h01, h11 = spread.sum(axis=1), spread @ z, spread @ z**2
        with np.errstate(divide="ignore", invalid="ignore"):
            determinant = h00 * h11 - h01**2
            da, db = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        a, b, step = a + da, b + db, np.abs(da) + np.abs(db)
        if not (step > _TOLERANCE).any():
            break
    fitted: Float[np.ndarray, "weightings 2"] = np.stack([a, b], axis=1)
    fitted[~(step <= _TOLERANCE)] = np.nan
    return fitted
