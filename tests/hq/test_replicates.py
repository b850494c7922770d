"""The mean over random replicates: coverage with a planted truth, limits, and a two-way ANOVA."""

import numpy as np
import pytest
from scipy.stats import binom

from hq.errors import HQError
from hq.stats.auroc import auroc_difference_statistic, estimate_auroc_difference
from hq.stats.equivalence import Equivalence, decide
from hq.stats.intervals import estimate, mean_statistic, smallest_detectable
from hq.stats.replicates import estimate_over_replicates

K, UNITS, RUNS = 5, 60, 400


def simulated(rng: np.random.Generator, spread: float, k: int = K) -> np.ndarray:
    """Values [replicate, row] of rows that are units, with the truth 0.

    Replicates differ by `spread`; rows have a part that replicates share, and one of their own.
    """
    own = 0.5 * rng.standard_normal((k, UNITS))
    return spread * rng.standard_normal((k, 1)) + rng.standard_normal(UNITS) + own


def covers(interval) -> bool:
    return bool(interval.low <= 0 <= interval.high)


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 1.0])
def test_the_interval_covers_a_planted_truth_and_units_alone_do_not(spread):
    """The first has a probability of 0.1% to fail if the coverage is 95%."""
    inside = {"both": 0, "one": 0, "units": 0}
    for run in range(RUNS):
        values = simulated(np.random.default_rng(run), spread)
        statistics = [mean_statistic(v) for v in values]
        inside["both"] += covers(estimate_over_replicates(statistics, UNITS).mean)
        inside["one"] += covers(estimate(statistics[0], UNITS))
        inside["units"] += covers(estimate(mean_statistic(values.mean(axis=0)), UNITS))
    assert binom.ppf(0.001, RUNS, 0.95) <= inside["both"] <= binom.ppf(0.9999, RUNS, 0.97), inside
    if spread >= 0.3:
        assert inside["one"] < 0.75 * RUNS
        assert inside["units"] < 0.9 * RUNS


def test_equal_replicates_have_the_interval_of_one():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(30), rng.integers(1, 9, 30))
    labels = np.arange(len(units)) % 2
    before, after = rng.standard_normal((2, len(units))) + 2 * labels
    after[labels == 1] -= 0.5
    one = estimate_auroc_difference(after, before, labels, units)
    statistic = auroc_difference_statistic(after, before, labels)
    several = estimate_over_replicates([statistic] * 4, len(units), units)
    assert several.mean.model_dump() == pytest.approx(one.model_dump())
    assert (several.replicates, several.mean.n) == (4, 30)
    assert several.deviation == pytest.approx(0)
    assert several.share == pytest.approx(0)
    assert several.shared == pytest.approx(one.se**2)
    assert smallest_detectable(several.mean) == pytest.approx(smallest_detectable(one))


def test_variance_and_shares_are_those_of_a_two_way_anova():
    """Mean squares of replicates, units and residuals: (MS_R + MS_U − MS_RU) / (k·G)."""
    values = simulated(np.random.default_rng(1), 0.4)
    of_replicate, of_unit, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    residual = values - of_replicate[:, None] - of_unit + mean
    ms_replicates = UNITS * ((of_replicate - mean) ** 2).sum() / (K - 1)
    ms_units = K * ((of_unit - mean) ** 2).sum() / (UNITS - 1)
    ms_residual = (residual**2).sum() / ((K - 1) * (UNITS - 1))
    result = estimate_over_replicates([mean_statistic(v) for v in values], UNITS)
    shared = (ms_units - ms_residual) / (K * UNITS)
    assert result.mean.value == pytest.approx(mean)
    assert result.between == pytest.approx(ms_replicates / UNITS)
    assert result.shared == pytest.approx(shared)
    assert result.mean.se**2 == pytest.approx(
        (ms_replicates + ms_units - ms_residual) / (K * UNITS)
    )
    assert result.deviation == pytest.approx(of_replicate.std(ddof=1))
    assert result.share == pytest.approx(result.between / (result.between + shared))
    parts = (ms_replicates / (K * UNITS), K - 1), (shared, UNITS - 1)
    expected = result.mean.se**4 / sum(part**2 / df for part, df in parts)
    assert result.mean.df == pytest.approx(expected)


def test_degrees_of_freedom_are_those_of_what_has_the_variance():
    rng = np.random.default_rng(2)
    apart = [mean_statistic(v) for v in simulated(rng, 100.0)]
    alike = [mean_statistic(v) for v in simulated(rng, 0.0)]
    assert estimate_over_replicates(apart, UNITS).mean.df == pytest.approx(K - 1, rel=0.01)
    assert 20 < estimate_over_replicates(alike, UNITS).mean.df <= UNITS - 1 + K - 1


def test_values_that_no_unit_shares_have_no_negative_variance():
    """Units move the two replicates in opposite directions: their covariance is not subtracted."""
    values = np.random.default_rng(3).standard_normal(UNITS)
    result = estimate_over_replicates([mean_statistic(values), mean_statistic(-values)], UNITS)
    assert result.shared == 0
    assert result.mean.se**2 == pytest.approx(result.between / 2)
    assert result.mean.df == pytest.approx(1)
    assert result.share == 1


def test_a_change_that_is_zero_everywhere_is_preserved():
    result = estimate_over_replicates([mean_statistic(np.zeros(UNITS))] * 3, UNITS)
    assert (result.mean.value, result.mean.se, result.share) == (0, 0, None)
    assert decide(result.mean, 0.02).verdict == Equivalence.PRESERVED


def test_replicates_that_differ_leave_a_change_undecided():
    rng = np.random.default_rng(4)
    values = 0.01 * simulated(rng, 0.0)
    alike = estimate_over_replicates([mean_statistic(v) for v in values], UNITS)
    shifts = np.array([-0.06, -0.02, 0.0, 0.02, 0.06])[:, None]
    apart = estimate_over_replicates([mean_statistic(v) for v in values + shifts], UNITS)
    assert apart.mean.value == pytest.approx(alike.mean.value)
    assert decide(alike.mean, 0.02).verdict == Equivalence.PRESERVED
    assert decide(apart.mean, 0.02).verdict == Equivalence.UNDECIDED
    assert decide(estimate(mean_statistic(values[0]), UNITS), 0.02).verdict == Equivalence.PRESERVED


def test_one_replicate_has_no_spread():
    with pytest.raises(HQError, match="two or more of them, not 1"):
        estimate_over_replicates([mean_statistic(np.zeros(9))], 9)
