"""How far a precision moves the contributions of neurons: estimates with intervals over questions.

All take the reference's values `a` and the variant's `b`, [n, k]: n questions, k neurons.
"""

import numpy as np
from jaxtyping import Float, Int

from hq.stats import Estimate, Weights, bootstrap, bootstrap_mean


def correlation(
    a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"], seed: int, replicates: int = 2000
) -> Estimate:
    """Pearson correlation over questions, mean over the neurons that vary at both."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    varies = (np.ptp(x, axis=0) > 0) & (np.ptp(y, axis=0) > 0)
    # Centred first: the weighted moments below then lose no digits to cancellation.
    x, y = (v[:, varies] - v[:, varies].mean(axis=0) for v in (x, y))

    def statistic(weights: Weights) -> Float[np.ndarray, " replicates"]:
        w = weights / weights.sum(axis=1, keepdims=True)
        mean_x, mean_y = w @ x, w @ y
        covariance = w @ (x * y) - mean_x * mean_y
        variance = (w @ x**2 - mean_x**2) * (w @ y**2 - mean_y**2)
        r = covariance / np.sqrt(np.maximum(variance, np.finfo(float).tiny))
        result: Float[np.ndarray, " replicates"] = r.mean(axis=1)
        return result

    return bootstrap(statistic, len(x), seed, replicates)


def relative_error(
    a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"], seed: int, replicates: int = 2000
) -> Estimate:
    """Σ|b − a| ÷ Σ|a| over questions, mean over the neurons that are not silent in `a`."""
    active = np.abs(a).sum(axis=0) > 0
    reference = np.abs(a[:, active]).astype(np.float64)
    change = np.abs(b[:, active].astype(np.float64) - a[:, active])

    def statistic(weights: Weights) -> Float[np.ndarray, " replicates"]:
        ratio = (weights @ change) / np.maximum(weights @ reference, np.finfo(float).tiny)
        result: Float[np.ndarray, " replicates"] = ratio.mean(axis=1)
        return result

    return bootstrap(statistic, len(a), seed, replicates)


def rank_change(
    a: Float[np.ndarray, "n p"],
    b: Float[np.ndarray, "n p"],
    chosen: Int[np.ndarray, " k"],
    d_ff: int,
    seed: int,
    replicates: int = 2000,
) -> Estimate:
    """Mean |change of rank| of the chosen neurons within their layer, as a share of d_ff.

    Here `a` and `b` hold all the model's neurons, p = layers · d_ff.
    """
    moved = np.zeros(len(a))
    for layer in np.unique(chosen // d_ff):
        columns = slice(layer * d_ff, (layer + 1) * d_ff)
        places = chosen[chosen // d_ff == layer] - layer * d_ff
        change = _ranks(a[:, columns])[:, places] - _ranks(b[:, columns])[:, places]
        moved += np.abs(change).sum(axis=1)
    return bootstrap_mean(moved / (len(chosen) * d_ff), seed, replicates)


def _ranks(values: Float[np.ndarray, "n d_ff"]) -> Int[np.ndarray, "n d_ff"]:
    """Place of each value in its row; equal values keep the order of their indices."""
    order = np.argsort(values, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(values.shape[1])[None], axis=1)
    return ranks
