"""Dose-response: how a rate, such as over-compliance OC(α), follows the scale α of some neurons.

`complied` is [alpha, n]: the same n trials at each α, 0 or 1 each (or the share of a trial's
samples that comply). Every resample takes a trial with all its α, so that differences over α are
paired.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy.typing import ArrayLike
from scipy.stats import kendalltau

from hq.errors import HQError
from hq.stats.bootstrap import Estimate, ResampleWeights, Statistic, bootstrap

Compliance = Float[np.ndarray, "alpha n"] | Bool[np.ndarray, "alpha n"]

# Rates of fewer than 10^12 trials that differ by less than this are equal but for rounding.
_DECIMALS = 12


def rate_statistic(
    complied: Compliance,
) -> Callable[[ResampleWeights], Float[np.ndarray, "replicates alpha"]]:
    """Weighted OC at each α, as an array statistic: Σ_i w_i·complied_ai / Σ_i w_i."""
    trials = _trials(complied)

    def statistic(weights: ResampleWeights) -> Float[np.ndarray, "replicates alpha"]:
        result: Float[np.ndarray, "replicates alpha"] = (
            weights @ trials.T / weights.sum(axis=1, keepdims=True)
        )
        return result

    return statistic


def bootstrap_rates(
    complied: Compliance,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> list[Estimate]:
    """OC at each α with its bootstrap interval; all α see the same resamples."""
    return [
        bootstrap(_mean_statistic(row), len(row), seed, replicates, groups, "rate")
        for row in _trials(complied)
    ]


def slope_statistic(complied: Compliance, alphas: ArrayLike) -> Statistic:
    """Least-squares slope of OC(α) over α: Σ_a c_a·OC_a, c_a = (α_a − ᾱ) / Σ_a (α_a − ᾱ)².

    As it is linear in the rates, it is the mean over trials of each one's own slope. As Σ c_a = 0,
    each trial may be measured from its first α, which makes the slope of a constant exactly 0.
    """
    trials = _trials(complied)
    return _mean_statistic(_slopes(trials, _doses(alphas, len(trials))))


def bootstrap_slope(
    complied: Compliance,
    alphas: ArrayLike,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """Slope of OC(α), in rate per unit of α, with its bootstrap interval (`slope_statistic`)."""
    statistic = slope_statistic(complied, alphas)
    return bootstrap(statistic, np.shape(complied)[1], seed, replicates, groups, "slope")


def slope_difference_statistic(a: Compliance, b: Compliance, alphas: ArrayLike) -> Statistic:
    """Slope of `a` minus that of `b`, paired: column i of both is the same trial."""
    first, second = _trials(a), _trials(b)
    if first.shape != second.shape:
        raise HQError(
            f"Compliance of shapes {first.shape} and {second.shape} cannot be paired: give the "
            "same α and trials for both."
        )
    doses = _doses(alphas, len(first))
    return _mean_statistic(_slopes(first, doses) - _slopes(second, doses))


def bootstrap_slope_difference(
    a: Compliance,
    b: Compliance,
    alphas: ArrayLike,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """`slope_difference_statistic` with its bootstrap interval: both on the same resamples."""
    statistic = slope_difference_statistic(a, b, alphas)
    return bootstrap(statistic, np.shape(a)[1], seed, replicates, groups, "difference of slopes")


def bootstrap_reduction(
    complied: Compliance,
    alphas: ArrayLike,
    alpha: float,
    seed: int,
    replicates: int = 2000,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate | None:
    """Reduction of over-compliance in percent: ΔOC(α) = (OC(1) − OC(α)) / OC(1) · 100.

    Positive where scaling by α lowers the rate. None where no trial complies at α = 1, as there is
    nothing to reduce; a resample without such a trial is drawn again, so that the interval is
    conditional on OC(1) > 0. HQError when `alpha` or 1 is not among `alphas`.
    """
    trials = _trials(complied)
    doses = _doses(alphas, len(trials))
    pair = trials[[_index(doses, 1.0), _index(doses, alpha)]]
    if not pair[0].any():
        return None
    both = rate_statistic(pair)

    def reduction(weights: ResampleWeights) -> Float[np.ndarray, " replicates"]:
        unscaled, scaled = both(weights).T
        left: Float[np.ndarray, " replicates"] = np.full(len(weights), np.nan)
        np.divide(scaled, unscaled, out=left, where=unscaled > 0)
        return 100 * (1 - left)

    return bootstrap(reduction, pair.shape[1], seed, replicates, groups, "reduction")


def r_squared(rates: ArrayLike, alphas: ArrayLike) -> float:
    """Share of the variance of the rates over α that the least-squares line explains.

    It is the squared Pearson correlation. 0, not NaN, where the rates are constant: there is no
    response then for the line to explain.
    """
    response, doses = _responses(rates, alphas)
    if np.ptp(response) == 0:
        return 0.0
    return min(1.0, float(np.corrcoef(doses, response)[0, 1] ** 2))


def monotonicity(rates: ArrayLike, alphas: ArrayLike) -> float:
    """Kendall's tau-b of rate and α (Kendall 1945): 1 where the rate only rises, −1 where it falls.

    Tau-b allows for ties, which are rates equal to 12 decimals. 0 where the rates are constant.
    """
    response, doses = _responses(rates, alphas)
    if np.ptp(response) == 0:
        return 0.0
    return float(kendalltau(doses, response, variant="b").statistic)


def draw_p_value(value: float, draws: ArrayLike) -> float:
    """Two-sided randomization p-value of a value among the draws of a control.

    (1 + #{|draw − m| ≥ |value − m|}) / (1 + draws), m being the draws' mean: the value counts as
    one of the draws (Davison & Hinkley 1997, ch. 4), so that p is never below 1 / (draws + 1), and
    19 draws are the fewest that can reach 0.05. As m leaves the value out, p is a little too small
    where the draws are few: of normal values, 6.4% reach 0.05 among 19 draws, 5.3% among 99.
    """
    d = np.asarray(draws, dtype=np.float64)
    if d.ndim != 1 or d.size == 0 or not np.isfinite(d).all() or not np.isfinite(value):
        raise HQError("The value and the draws must be finite, at least one draw: drop the others.")
    middle = np.append(d, value).mean()
    # A draw as far off on the other side is a tie, whatever the rounding.
    as_far = np.abs(d - middle) >= abs(value - middle) * (1 - 1e-9)
    return (1 + int(as_far.sum())) / (1 + len(d))


def _mean_statistic(values: Float[np.ndarray, " n"]) -> Statistic:
    def mean(weights: ResampleWeights) -> Float[np.ndarray, " replicates"]:
        result: Float[np.ndarray, " replicates"] = weights @ values / weights.sum(axis=1)
        return result

    return mean


def _slopes(
    trials: Float[np.ndarray, "alpha n"], doses: Float[np.ndarray, " alpha"]
) -> Float[np.ndarray, " n"]:
    centred = doses - doses.mean()
    slopes: Float[np.ndarray, " n"] = centred @ (trials - trials[0]) / (centred @ centred)
    return slopes


def _trials(complied: Compliance) -> Float[np.ndarray, "alpha n"]:
    trials = np.asarray(complied, dtype=np.float64)
    if trials.ndim != 2 or trials.size == 0:
        raise HQError(
            f"Compliance of shape {trials.shape} is no table of trials: give one row per α and one "
            "column per trial."
        )
    if not ((trials >= 0) & (trials <= 1)).all():
        raise HQError("Compliance must lie between 0 and 1 everywhere: judge the others again.")
    return trials


def _doses(alphas: ArrayLike, count: int) -> Float[np.ndarray, " alpha"]:
    doses = np.asarray(alphas, dtype=np.float64)
    if doses.shape != (count,):
        raise HQError(f"Rates at {count} α have α of shape {doses.shape}: give one α per rate.")
    if count < 2 or not np.isfinite(doses).all() or len(np.unique(doses)) < count:
        raise HQError("A dose-response needs two or more α, finite and different: add or mend α.")
    return doses


def _responses(
    rates: ArrayLike, alphas: ArrayLike
) -> tuple[Float[np.ndarray, " alpha"], Float[np.ndarray, " alpha"]]:
    response = np.asarray(rates, dtype=np.float64)
    if response.ndim != 1 or not np.isfinite(response).all():
        raise HQError("The rates must be one finite number per α: measure the others again.")
    return np.round(response, _DECIMALS), _doses(alphas, len(response))


def _index(doses: Float[np.ndarray, " alpha"], alpha: float) -> int:
    found = np.flatnonzero(np.isclose(doses, alpha, rtol=0, atol=1e-9))
    if found.size == 0:
        raise HQError(f"α = {alpha:g} is not among the α measured: measure the rate there too.")
    return int(found[0])
