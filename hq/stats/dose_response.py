"""Dose-response: how a rate, such as over-compliance OC(α), depends on the scale α of some neurons.

`compliance` is [alpha, n]: the same n trials at each α, each 0 or 1, or the share of a trial's
samples that comply. A trial is left out with all its α, so differences over α are paired.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy.typing import ArrayLike
from scipy.stats import kendalltau

from hq.errors import HQError
from hq.stats.intervals import (
    Estimate,
    Statistic,
    Weights,
    combined_interval,
    estimate,
    estimate_rate,
    mean_statistic,
    units_of,
)

Compliance = Float[np.ndarray, "alpha n"] | Bool[np.ndarray, "alpha n"]

# Rates of fewer than 10^12 trials that differ by less than this are equal but for rounding.
_DECIMALS = 12


def rate_statistic(
    compliance: Compliance,
) -> Callable[[Weights], Float[np.ndarray, "weightings alpha"]]:
    """Return the weighted OC at each α as a statistic: Σ_i w_i·compliance_ai / Σ_i w_i."""
    trials = _trials(compliance)

    def statistic(weights: Weights) -> Float[np.ndarray, "weightings alpha"]:
        result: Float[np.ndarray, "weightings alpha"] = (
            weights @ trials.T / weights.sum(axis=1, keepdims=True)
        )
        return result

    return statistic


def estimate_rates(
    compliance: Compliance, groups: Shaped[np.ndarray, " n"] | None = None
) -> list[Estimate]:
    """OC at each α with its interval (`estimate_rate`)."""
    return [estimate_rate(row, groups) for row in _trials(compliance)]


def slope_statistic(compliance: Compliance, alphas: ArrayLike) -> Statistic:
    """Least-squares slope of OC(α) over α: Σ_a c_a·OC_a, c_a = (α_a − ᾱ) / Σ_a (α_a − ᾱ)².

    It is linear in the rates, so it is the mean of the slopes of the trials. As Σ c_a = 0, each
    trial's value at the first α can be subtracted, which makes the slope of a constant exactly 0.
    """
    trials = _trials(compliance)
    return mean_statistic(_slopes(trials, _doses(alphas, len(trials))))


def estimate_slope(
    compliance: Compliance, alphas: ArrayLike, groups: Shaped[np.ndarray, " n"] | None = None
) -> Estimate:
    """Slope of OC(α), in rate per unit of α, with its jackknife interval (`slope_statistic`)."""
    statistic = slope_statistic(compliance, alphas)
    return estimate(statistic, np.shape(compliance)[1], groups, "slope")


def slope_difference_statistic(a: Compliance, b: Compliance, alphas: ArrayLike) -> Statistic:
    """Slope of `a` minus that of `b`, paired: column i of both is the same trial."""
    first, second = _trials(a), _trials(b)
    if first.shape != second.shape:
        raise HQError(
            f"Compliance of shapes {first.shape} and {second.shape} cannot be paired: give the "
            "same α and trials for both."
        )
    doses = _doses(alphas, len(first))
    return mean_statistic(_slopes(first, doses) - _slopes(second, doses))


def estimate_slope_excess(
    compliance: Compliance,
    drawn: Float[np.ndarray, "draws alpha n"] | Bool[np.ndarray, "draws alpha n"],
    alphas: ArrayLike,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """Slope minus the mean slope of draws of a control, on the same trials, with its interval.

    se² = se_units² + s²/D: the jackknife over units with the draws fixed, and the variance s² of
    the slopes of the D draws, as other draws would have another mean. Degrees of freedom after
    Satterthwaite (1946): se⁴ / (se_units⁴/df_units + (s²/D)²/(D − 1)). s² contains the variance
    of single draws over units, so the interval is slightly too wide. Raises HQError for fewer than
    two draws.
    """
    first = _trials(compliance)
    doses = _doses(alphas, len(first))
    if len(drawn) < 2:
        raise HQError(f"There is {len(drawn)} draw: the variance over draws takes two or more.")
    of_draws = np.stack([_slopes(_trials(one), doses) for one in drawn])
    if of_draws.shape[1] != first.shape[1]:
        raise HQError(
            f"There are {first.shape[1]} trials and {of_draws.shape[1]} of each draw: give the "
            "same trials for both."
        )
    statistic = mean_statistic(_slopes(first, doses) - of_draws.mean(axis=0))
    over_units = estimate(statistic, first.shape[1], groups, "difference of slopes")
    assert over_units.se is not None
    assert over_units.df is not None
    of_mean = float(of_draws.mean(axis=1).var(ddof=1)) / len(of_draws)
    parts = ((over_units.se**2, over_units.df), (of_mean, len(of_draws) - 1))
    return combined_interval(over_units.value, over_units.n, parts)


def estimate_curvature(
    compliance: Compliance, alphas: ArrayLike, groups: Shaped[np.ndarray, " n"] | None = None
) -> Estimate:
    """Coefficient of α² in the least-squares parabola through OC(α), with its jackknife interval.

    It is Σ_a q_a·OC_a / Σ_a q_a², where q is α² minus its least-squares line in α, so a straight
    line has a curvature of 0, and an interval without 0 shows a departure from a line. Raises
    HQError for fewer than three α.
    """
    trials = _trials(compliance)
    doses = _doses(alphas, len(trials))
    if len(doses) < 3:
        raise HQError(f"{len(doses)} α cannot show a curvature: measure at three or more.")
    square = doses**2
    contrast = square - np.polyval(np.polyfit(doses, square, 1), doses)
    of_trials = contrast @ (trials - trials[0]) / (contrast @ contrast)
    return estimate(mean_statistic(of_trials), trials.shape[1], groups, "curvature")


def is_monotone(
    compliance: Compliance, alphas: ArrayLike, groups: Shaped[np.ndarray, " n"] | None = None
) -> bool:
    """Whether OC(α) may be monotone: False if it is shown to rise and to fall.

    Of every two α, the difference of the rates is tested at level 0.05 divided by their number
    (Bonferroni), with the jackknife standard error. A curve is not monotone if one difference is
    shown to be positive and another negative; if it is monotone, this has a probability of 2.5% at
    most, as all differences of one sign are then errors.
    """
    trials = _trials(compliance)
    trials = trials[np.argsort(_doses(alphas, len(trials)))]
    pairs = list(combinations(range(len(trials)), 2))
    shown = set()
    for low, high in pairs:
        statistic = mean_statistic(trials[high] - trials[low])
        change = estimate(statistic, trials.shape[1], groups, "difference of rates")
        start, end = change.interval(1 - 0.05 / len(pairs))
        shown |= {1} if start > 0 else {-1} if end < 0 else set()
    return len(shown) < 2


def estimate_slope_difference(
    a: Compliance,
    b: Compliance,
    alphas: ArrayLike,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """`slope_difference_statistic` with its jackknife interval: both without the same unit."""
    statistic = slope_difference_statistic(a, b, alphas)
    return estimate(statistic, np.shape(a)[1], groups, "difference of slopes")


def estimate_reduction(
    compliance: Compliance,
    alphas: ArrayLike,
    alpha: float,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate | None:
    """Reduction of over-compliance in percent: ΔOC(α) = (OC(1) − OC(α)) / OC(1) · 100.

    Positive if scaling by α lowers the rate; None if trials of fewer than two units comply at
    α = 1, as the ratio or its interval is then undefined. Raises HQError if `alpha` or 1 is not
    among `alphas`.
    """
    trials = _trials(compliance)
    doses = _doses(alphas, len(trials))
    pair = trials[[_index(doses, 1.0), _index(doses, alpha)]]
    complying = units_of(pair.shape[1], groups)[pair[0] > 0]
    if len(np.unique(complying)) < 2:
        return None
    both = rate_statistic(pair)

    def reduction(weights: Weights) -> Float[np.ndarray, " weightings"]:
        unscaled, scaled = both(weights).T
        percent: Float[np.ndarray, " weightings"] = 100 * (1 - scaled / unscaled)
        return percent

    return estimate(reduction, pair.shape[1], groups, "reduction")


def r_squared(rates: ArrayLike, alphas: ArrayLike) -> float:
    """Share of the variance of the rates over α that the least-squares line explains.

    This is the squared Pearson correlation; 0 if the rates are constant.
    """
    response, doses = _responses(rates, alphas)
    if np.ptp(response) == 0:
        return 0.0
    return min(1.0, float(np.corrcoef(doses, response)[0, 1] ** 2))


def monotonicity(rates: ArrayLike, alphas: ArrayLike) -> float:
    """Kendall's tau-b of rate and α (Kendall 1945): 1 if the rate only rises, −1 if it only falls.

    Rates that agree to 12 decimals are ties. 0 if the rates are constant.
    """
    response, doses = _responses(rates, alphas)
    if np.ptp(response) == 0:
        return 0.0
    return float(kendalltau(doses, response, variant="b").statistic)


def draw_p_value(value: float, draws: ArrayLike) -> float:
    """Two-sided randomization p-value of a value among the draws of a control.

    (1 + #{|draw − m| ≥ |value − m|}) / (1 + draws), where m is the mean of the value and the draws
    (Davison & Hinkley 1997, ch. 4). The value counts as one of the draws, so p is at least
    1 / (draws + 1): 0.05 takes 19 draws or more.
    """
    d = np.asarray(draws, dtype=np.float64)
    if d.ndim != 1 or d.size == 0 or not np.isfinite(d).all() or not np.isfinite(value):
        raise HQError(
            "The value and all draws must be finite, with at least one draw: remove the others."
        )
    mean = np.append(d, value).mean()
    # A draw at the same distance on the other side is a tie despite rounding.
    as_far = np.abs(d - mean) >= abs(value - mean) * (1 - 1e-9)
    return (1 + int(as_far.sum())) / (1 + len(d))


def _slopes(
    trials: Float[np.ndarray, "alpha n"], doses: Float[np.ndarray, " alpha"]
) -> Float[np.ndarray, " n"]:
    centred = doses - doses.mean()
    slopes: Float[np.ndarray, " n"] = centred @ (trials - trials[0]) / (centred @ centred)
    return slopes


def _trials(compliance: Compliance) -> Float[np.ndarray, "alpha n"]:
    trials = np.asarray(compliance, dtype=np.float64)
    if trials.ndim != 2 or trials.size == 0:
        raise HQError(
            f"Compliance has the shape {trials.shape}: give one row per α and one column per trial."
        )
    if not ((trials >= 0) & (trials <= 1)).all():
        raise HQError("Compliance must be between 0 and 1: judge the other trials again.")
    return trials


def _doses(alphas: ArrayLike, count: int) -> Float[np.ndarray, " alpha"]:
    doses = np.asarray(alphas, dtype=np.float64)
    if doses.shape != (count,):
        raise HQError(f"There are {count} rates and α of shape {doses.shape}: give one α per rate.")
    if count < 2 or not np.isfinite(doses).all() or len(np.unique(doses)) < count:
        raise HQError(
            "A dose-response needs at least two α, finite and different: add or correct α."
        )
    return doses


def _responses(
    rates: ArrayLike, alphas: ArrayLike
) -> tuple[Float[np.ndarray, " alpha"], Float[np.ndarray, " alpha"]]:
    response = np.asarray(rates, dtype=np.float64)
    if response.ndim != 1 or not np.isfinite(response).all():
        raise HQError("The rates must be one finite number per α: measure the others again.")
    return np.round(response, _DECIMALS), _doses(alphas, len(response))


def _index(doses: Float[np.ndarray, " alpha"], alpha: float) -> int:
    matches = np.flatnonzero(np.isclose(doses, alpha, rtol=0, atol=1e-9))
    if matches.size == 0:
        raise HQError(f"α = {alpha:g} is not among the α measured: measure the rate there too.")
    return int(matches[0])
