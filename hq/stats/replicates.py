"""The mean of a statistic over random replicates, which differ although their units are the same.

A checkpoint that is quantized with calibration texts is one of many: other texts make another one.
An interval over units describes this checkpoint only. For all that could be made in the same way,
replicates and units are both random, as are readers and cases in studies of diagnostic imaging:
the interval is that of Obuchowski & Rockette (1995, "Hypothesis testing of diagnostic accuracy for
multiple readers and multiple tests: an ANOVA approach with dependent observations",
Communications in Statistics – Simulation and Computation 24, 285–308) for one test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from hq.errors import HQError
from hq.stats.intervals import Estimate, Statistic, combined_interval, degrees_of_freedom, jackknife


@dataclass(frozen=True)
class OverReplicates:
    """The mean over replicates, with an interval for replicates and units, and its two parts."""

    mean: Estimate  # `n` is the number of units
    replicates: int
    between: float  # S²: sample variance of the replicates' values
    shared: float  # max(0, Cov₂): covariance over units of the values of two replicates

    @property
    def deviation(self) -> float:
        """Standard deviation between the values of the replicates."""
        return float(np.sqrt(self.between))

    @property
    def share(self) -> float | None:
        """S² / (S² + Cov₂), the share of one replicate's variance; None if both are 0."""
        total = self.between + self.shared
        return self.between / total if total > 0 else None


def estimate_over_replicates(
    statistics: Sequence[Statistic],
    n: int,
    groups: Shaped[np.ndarray, " n"] | None = None,
    name: str = "statistic",
) -> OverReplicates:
    """Return the mean of a statistic over k replicates with the interval of Obuchowski & Rockette.

    With S² the sample variance of the k values, and Cov₂ the mean over pairs of replicates of the
    covariance of their values over units: se² = S²/k + max(0, Cov₂). S² contains the differences
    between replicates as well as what units add to them, and Cov₂ what units add to all replicates.
    For the values T_gi of replicate i without unit g, of G units, the covariance of i and j is
    (G − 1)/G · Σ_g (T_gi − mean T_i)(T_gj − mean T_j), the jackknife of `estimate`.

    The interval is mean ± t(df)·se with df = se⁴ / ((S²/k)²/(k − 1) + max(0, Cov₂)²/df_c), where
    df_c are the degrees of freedom of the jackknife of the mean (`estimate`). Hillis (2007, "A
    comparison of denominator degrees of freedom methods for multiple observer ROC analysis",
    Statistics in Medicine 26, 596–619) has the first term; the second is that of Satterthwaite
    (1946) for an estimated Cov₂. For equal replicates, the interval is that of `estimate`.

    Args:
        statistics: The statistic of each replicate, as a function of the row weights.
        n: Number of rows, which are the same for all replicates.
        groups: Unit of each row; by default, each row is a unit.
        name: Name of the statistic in messages.

    Raises:
        HQError: If there are fewer than two replicates; and as `estimate`.
    """
    k = len(statistics)
    if k < 2:
        raise HQError(f"The spread between replicates needs two or more of them, not {k}.")
    results = [jackknife(statistic, n, groups, name) for statistic in statistics]
    values = np.array([value for value, _, _ in results])
    left_out, sizes = np.stack([without for _, without, _ in results]), results[0][2]
    deviations = left_out - left_out.mean(axis=1, keepdims=True)
    covariances = (len(sizes) - 1) / len(sizes) * deviations @ deviations.T
    pairs = covariances[~np.eye(k, dtype=bool)]
    between, shared = float(values.var(ddof=1)), max(0.0, float(pairs.mean()))
    df_units = degrees_of_freedom(deviations.mean(axis=0) ** 2, sizes)
    parts = ((shared, df_units), (between / k, k - 1))
    mean = combined_interval(float(values.mean()), len(sizes), parts)
    return OverReplicates(mean, k, between, shared)
