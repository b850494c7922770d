"""Estimates with 95% intervals for rows that are not independent: AUROC, means, rates, differences.

Rows of one group, the unit, may depend on each other in any way; units are independent. The
standard error is that of the delete-one-unit jackknife (Miller 1974, "The jackknife: a review"; it
is not too small on average, Efron & Stein 1981), which for an AUROC is close to the variance of
Obuchowski (1997, "Nonparametric analysis of clustered ROC curve data"). Large units make it
imprecise, so the interval uses Student's t with the degrees of freedom of Satterthwaite (1946).
`docs/statistics.md` has the formulas and the measured coverage.

A statistic is a function of row weights [weightings, n]: rows are sorted once and never copied.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from scipy.special import expit, logit
from scipy.stats import beta
from scipy.stats import t as student_t

from hq.errors import HQError

Weights = Float[np.ndarray, "weightings n"]
Statistic = Callable[[Weights], Float[np.ndarray, " weightings"]]
Scale = Literal["identity", "logit"]

# 2^22 float64 weights are 32 MiB: enough for vectorized operations, small compared with a model.
_CHUNK = 2**22


class Estimate(BaseModel):
    """A value and its 95% interval.

    `n` is the number of independent units: groups if there are groups, else rows. `se` is the
    standard error on the scale of the value, and `df` its degrees of freedom; both are None for a
    mean over draws.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    n: int
    se: float | None = None
    df: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of_draws(cls, values: Float[np.ndarray, " draws"]) -> Self:
        """Mean over draws with the interval that contains 95% of them; `n` is their number."""
        low, high = np.quantile(values, [0.025, 0.975])
        return cls(value=float(values.mean()), low=float(low), high=float(high), n=len(values))

    def interval(self, level: float) -> tuple[float, float]:
        """Student's t interval of the value at another level, such as 0.9.

        Raises HQError if the estimate has no standard error.
        """
        se, df = _standard_error(self)
        half = float(student_t.ppf((1 + level) / 2, df)) * se
        return self.value - half, self.value + half


def estimate(
    statistic: Statistic,
    n: int,
    groups: Shaped[np.ndarray, " n"] | None = None,
    name: str = "statistic",
    scale: Scale = "identity",
) -> Estimate:
    """Return a statistic of `n` rows with its jackknife t interval.

    With T_g the statistic without unit g, and G units: se² = (G − 1)/G · Σ (T_g − mean T)², and the
    interval is value ± t(df)·se. On the logit scale, it is logit(value) ± t(df)·se/(value·(1 −
    value)), transformed back, which stays within 0 and 1; at a value of 0 or 1, where this is
    undefined, it is the interval of Clopper & Pearson for none or all of G trials.

    Degrees of freedom: the share of unit g in se² has an expectation proportional to
    v_g = a·m_g + b·m_g², where m_g is the number of its rows, and a, b ≥ 0 are fitted by moments.
    df = (Σ v)² / Σ v² − 1, at least 1, which is G − 1 for units of one size.

    Args:
        statistic: Function of the row weights; NaN where it is undefined.
        n: Number of rows.
        groups: Unit of each row; by default, each row is a unit.
        name: Name of the statistic in messages.
        scale: "logit" for a statistic between 0 and 1.

    Raises:
        HQError: If there are no rows, only one unit, or if the statistic is undefined, for all rows
            or without one of the units.
    """
    return from_jackknife(*jackknife(statistic, n, groups, name), scale)


def from_jackknife(
    value: float,
    left_out: Float[np.ndarray, " unit"],
    sizes: Float[np.ndarray, " unit"],
    scale: Scale = "identity",
) -> Estimate:
    """Return the estimate of `estimate` from what `jackknife` returned.

    Values of several statistics can be combined first, such as into a difference, if they are of
    the same rows and units.
    """
    squares = (left_out - left_out.mean()) ** 2
    se = float(np.sqrt((len(sizes) - 1) / len(sizes) * squares.sum()))
    df = degrees_of_freedom(squares, sizes)
    low, high = _limits(value, se, df, len(sizes), scale)
    return Estimate(value=value, low=low, high=high, n=len(sizes), se=se, df=df)


def jackknife(
    statistic: Statistic,
    n: int,
    groups: Shaped[np.ndarray, " n"] | None = None,
    name: str = "statistic",
) -> tuple[float, Float[np.ndarray, " unit"], Float[np.ndarray, " unit"]]:
    """Return a statistic of all rows, its values without each unit, and the sizes of the units.

    Arguments and errors are those of `estimate`.
    """
    unit = units_of(n, groups)
    sizes = np.bincount(unit).astype(np.float64)
    value = float(statistic(np.ones((1, n)))[0])
    if np.isnan(value):
        raise HQError(f"The {name} is undefined for these {n} rows: collect more varied data.")
    left_out = np.concatenate([statistic(weights) for weights in _without_each(unit, len(sizes))])
    undefined = int(np.isnan(left_out).sum())
    if undefined:
        raise HQError(
            f"The {name} is undefined without {undefined} of its {len(sizes)} independent units: "
            "collect more units with the rarer class or value."
        )
    return value, left_out, sizes


def combined_interval(value: float, units: int, parts: Sequence[tuple[float, float]]) -> Estimate:
    """Return a value whose variance is a sum of independent parts, with its 95% interval.

    The degrees of freedom are those of Satterthwaite (1946): (Σ v)² ÷ Σ v²/df. If all parts are 0,
    they are those of the first part.

    Args:
        value: The estimated value.
        units: Number of independent units.
        parts: Variance and degrees of freedom of each part.
    """
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / df for part, df in parts)
    df = variance**2 / spread if spread else parts[0][1]
    se = float(np.sqrt(variance))
    half = float(student_t.ppf(0.975, df)) * se
    return Estimate(value=value, low=value - half, high=value + half, n=units, se=se, df=df)


def smallest_detectable(difference: Estimate, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest true difference that a study of this precision detects.

    (t_{1 − alpha/2} + t_{power})·se, with the standard error and degrees of freedom of an estimated
    difference: a true difference of this size has an interval at level 1 − `alpha` that excludes 0
    with a probability of about `power`, if its standard error is the same. That of an AUROC grows
    as it falls: `docs/statistics.md` has the measured power. Raises HQError if the estimate has no
    standard error.
    """
    se, df = _standard_error(difference)
    return float(student_t.ppf(1 - alpha / 2, df) + student_t.ppf(power, df)) * se


def units_of(n: int, groups: Shaped[np.ndarray, " n"] | None) -> Int[np.ndarray, " n"]:
    """Return the number of each row's unit, from 0.

    Raises HQError if there are no rows, another number of groups than rows, or only one unit.
    """
    if n == 0:
        raise HQError("There are no rows to compute an estimate from: check the selection.")
    if groups is not None and np.shape(groups) != (n,):
        raise HQError(f"There are {len(groups)} groups for {n} rows: give one group per row.")
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    if unit.max() == 0:
        raise HQError(
            f"All {n} rows belong to one independent unit: an interval needs rows of two or more."
        )
    return unit


def _without_each(unit: Int[np.ndarray, " n"], units: int) -> Iterator[Weights]:
    """Yield weights that are 0 for the rows of one unit and 1 for all others, for each unit."""
    chunk = max(1, _CHUNK // len(unit))
    for start in range(0, units, chunk):
        removed = np.arange(start, min(start + chunk, units))
        yield (unit != removed[:, None]).astype(np.float64)


def degrees_of_freedom(
    squares: Float[np.ndarray, " unit"], sizes: Float[np.ndarray, " unit"]
) -> float:
    """Return Satterthwaite's degrees of freedom from the model of unit variances of `estimate`.

    `squares` are the squared deviations of the statistic without each unit, `sizes` the numbers of
    rows of the units.

    Up to a factor, v is a mixture of m_g and m_g², each with the sum 1. The moments agree if the
    mean size of a unit, weighted by v, is the mean weighted by the squared deviations.
    """
    if squares.max() == 0:
        return float(len(sizes) - 1)
    linear, quadratic = (sizes**power / (sizes**power).sum() for power in (1, 2))
    observed, low, high = (
        float(sizes @ share) for share in (squares / squares.sum(), linear, quadratic)
    )
    mixture = min(max((observed - low) / (high - low), 0.0), 1.0) if high > low else 0.0
    variances = (1 - mixture) * linear + mixture * quadratic
    return max(1.0, 1 / float((variances**2).sum()) - 1)


def _limits(value: float, se: float, df: float, units: int, scale: Scale) -> tuple[float, float]:
    quantile = float(student_t.ppf(0.975, df))
    if scale == "identity":
        return value - quantile * se, value + quantile * se
    if value in (0, 1):
        return clopper_pearson(value * units, units)
    centre, half = float(logit(value)), quantile * se / (value * (1 - value))
    return float(expit(centre - half)), float(expit(centre + half))


def clopper_pearson(hits: float, trials: float) -> tuple[float, float]:
    """Return the 95% interval of a share (Clopper & Pearson 1934); counts may be fractions."""
    low = float(beta.ppf(0.025, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def _standard_error(of: Estimate) -> tuple[float, float]:
    if of.se is None or of.df is None:
        raise HQError(
            f"The estimate {of} has no standard error: use one over rows, not a mean over draws."
        )
    return of.se, of.df


def estimate_mean(values: ArrayLike, groups: Shaped[np.ndarray, " n"] | None = None) -> Estimate:
    """Mean over rows with its interval. Raises HQError if a value is not finite."""
    v = _finite(values, "values")
    return estimate(mean_statistic(v), len(v), groups, "mean")


def estimate_rate(
    values: ArrayLike,
    groups: Shaped[np.ndarray, " n"] | None = None,
    equal_units: bool = False,
) -> Estimate:
    """Share of rows with its interval, after Korn & Graubard (1998).

    It is the interval of Clopper & Pearson (1934) with an effective number of trials n_eff in place
    of the number of rows n. With p the share, n_eff is the smaller of

    - (1 + p·(1 − p)/se²)·(t(n − 1)/t(df))², at most n, from the jackknife standard error, where
      t(df) is the 97.5% quantile of Student's t (Korn & Graubard), and
    - 1/((1 − ρ)·Σ_i w_i² + ρ·Σ_g W_g²), where w_i is the weight of row i in p, W_g that of unit g,
      and ρ the intraclass correlation 1 − s²/(p·(1 − p)), with s² the variance within units.

    The jackknife alone is too optimistic if positives are rare and a few units are large: then most
    samples have no large unit with many positives. Without groups, n_eff is n. If no or every row
    is positive, n_eff is the number of units.

    Args:
        values: 0 or 1 for each row, or a share in between.
        groups: Unit of each row; by default, each row is a unit.
        equal_units: Whether to average the rates of the units, which then have the same weight
            however many rows they have.
    """
    v = _finite(values, "values")
    if not ((v >= 0) & (v <= 1)).all():
        raise HQError("A rate needs values from 0 to 1: correct the other values.")
    unit = units_of(len(v), groups)
    sizes = np.bincount(unit).astype(np.float64)
    per_unit = np.bincount(unit, v) / sizes
    if equal_units:
        rate = estimate(mean_statistic(per_unit), len(per_unit), name="rate")
    else:
        rate = estimate(mean_statistic(v), len(v), unit, "rate")
    within = float(((v - per_unit[unit]) ** 2).sum())
    weights = np.ones(len(sizes)) if equal_units else sizes
    trials = _effective_trials(rate, within, sizes, weights / weights.sum())
    low, high = clopper_pearson(min(rate.value * trials, trials), trials)
    return rate.model_copy(update={"low": low, "high": high})


def _effective_trials(
    rate: Estimate,
    within: float,
    sizes: Float[np.ndarray, " unit"],
    weights: Float[np.ndarray, " unit"],
) -> float:
    """Return n_eff of `estimate_rate`; `within` is the sum of squares within units."""
    p, (se, df) = rate.value, _standard_error(rate)
    rows, units = int(sizes.sum()), len(sizes)
    variance = p * (1 - p)
    if variance <= 0:
        return units
    jackknife = float(rows)
    if se > 0:
        ratio = float(student_t.ppf(0.975, rows - 1) / student_t.ppf(0.975, df))
        jackknife = min(jackknife, (1 + variance / se**2) * ratio**2)
    if rows == units:
        return jackknife
    correlation = min(max(1 - within / (rows - units) / variance, 0.0), 1.0)
    of_rows, of_units = (weights**2 / sizes).sum(), (weights**2).sum()
    return min(jackknife, 1 / float((1 - correlation) * of_rows + correlation * of_units))


def mean_statistic(values: Float[np.ndarray, " n"]) -> Statistic:
    """Return the weighted mean as a statistic."""

    def mean(weights: Weights) -> Float[np.ndarray, " weightings"]:
        result: Float[np.ndarray, " weightings"] = weights @ values / weights.sum(axis=1)
        return result

    return mean


def _finite(values: ArrayLike, name: str) -> Float[np.ndarray, " n"]:
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not np.isfinite(v).all():
        raise HQError(
            f"The {name} must be one finite number per row: remove or correct the others."
        )
    return v
