"""Population stability index, Kolmogorov–Smirnov by units, and calibration."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, ks_2samp
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from hq.errors import HQError
from hq.stats.calibration import estimate_calibration_slope, expected_calibration_error
from hq.stats.drift import ks_statistic, population_stability_index, score_shift


def test_psi_of_known_shares():
    reference = np.arange(8) + 0.5  # quartiles between 1.5 and 2.5, …, after half a count 2.5 of 10
    new = np.repeat([0.0, 3.0, 5.0, 7.0], [5, 3, 0, 0])
    p, q = np.full(4, 2.5 / 10), np.array([5.5, 3.5, 0.5, 0.5]) / 10
    expected = ((q - p) * np.log(q / p)).sum()
    assert population_stability_index(reference, new, bins=4) == pytest.approx(expected, rel=1e-12)
    assert population_stability_index(reference, reference, bins=4) == 0


def test_psi_of_a_shifted_normal_is_near_the_divergence():
    """Between N(0, 1) and N(d, 1), the symmetrised divergence is d²; bins lose some of it."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(200_000), rng.standard_normal(200_000) + 0.5
    assert 0.22 < population_stability_index(a, b) < 0.25
    assert population_stability_index(a, a[::2]) < 1e-3


def test_psi_without_a_change_has_the_expectation_of_yurdakul_and_naranjo():
    rng = np.random.default_rng(1)
    n, m, bins = 400, 200, 10
    values = [
        population_stability_index(rng.standard_normal(n), rng.standard_normal(m), bins)
        for _ in range(400)
    ]
    expected = (bins - 1) * (1 / n + 1 / m)
    assert np.mean(values) == pytest.approx(expected, rel=0.12)


def test_psi_with_equal_scores_in_the_reference_has_fewer_bins():
    assert population_stability_index(np.zeros(20), np.zeros(10)) < 0.02  # of the half counts
    assert population_stability_index(np.repeat([0.0, 1.0], 10), np.ones(10)) > 0.5


@pytest.mark.parametrize("round_to", [None, 1])
def test_ks_equals_scipys(round_to):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal(150), rng.standard_normal(90) + 0.2
    if round_to is not None:
        a, b = a.round(round_to), b.round(round_to)
    assert ks_statistic(a, b) == pytest.approx(ks_2samp(a, b).statistic, abs=1e-12)


def test_with_single_rows_the_p_value_is_near_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal(80), rng.standard_normal(60) + 0.35
    shift = score_shift(a, b, np.arange(80), 1000 + np.arange(60), permutations=1999)
    assert shift.ks_p == pytest.approx(ks_2samp(a, b).pvalue, abs=0.02)
    assert shift == score_shift(a, b, np.arange(80), 1000 + np.arange(60), permutations=1999)


RUNS = 120


def clustered(rng, units, effect=0.0):
    """Units of 1 to many rows that share most of their score."""
    unit = np.repeat(np.arange(units), rng.geometric(0.2, units))
    return 0.9 * rng.standard_normal(units)[unit] + 0.4 * rng.standard_normal(len(unit)), unit


def test_the_p_value_of_clustered_rows_holds_its_level():
    """A share of 0.05 of the data sets without a change has p ≤ 0.05, and more by scipy's p."""
    rng, rejected, naive = np.random.default_rng(4), np.zeros(2, dtype=int), 0
    for _ in range(RUNS):
        (a, unit_a), (b, unit_b) = clustered(rng, 30), clustered(rng, 30)
        shift = score_shift(a, b, unit_a, 100 + unit_b, permutations=39)
        rejected += [shift.psi_p <= 0.05, shift.ks_p <= 0.05]
        naive += ks_2samp(a, b).pvalue <= 0.05
    for count in rejected.tolist():
        assert binomtest(count, RUNS, 0.05).pvalue > 0.01, count
    assert naive > 0.3 * RUNS


def test_the_p_value_of_the_same_texts_holds_its_level_and_sees_a_small_shift():
    rng, rejected, seen = np.random.default_rng(5), 0, 0
    for _ in range(RUNS):
        text, unit = clustered(rng, 30)
        a, b = (text + 0.1 * rng.standard_normal(len(text)) for _ in range(2))
        rejected += score_shift(a, b, unit, unit, permutations=39).ks_p <= 0.05
        seen += score_shift(a, b + 0.2, unit, unit, permutations=39).ks_p <= 0.05
    assert binomtest(rejected, RUNS, 0.05).pvalue > 0.01
    assert seen > 0.9 * RUNS  # a fifth of the spread of the texts, which pairing removes


def test_without_units_of_the_reference_there_is_no_p_value():
    shift = score_shift(np.arange(5.0), np.arange(5.0) + 1, None, np.arange(5))
    assert (shift.psi_p, shift.ks_p) == (None, None)
    assert shift.ks == pytest.approx(0.2)


@pytest.mark.parametrize("scores", [[], [np.nan], [[1.0]]])
def test_scores_must_be_finite_numbers(scores):
    with pytest.raises(HQError, match="new scores must be one finite number per row"):
        ks_statistic([1.0, 2.0], scores)


def predicted(n=1000, slope=0.5, seed=6):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0.2, 1.5, n)
    return scores, (rng.random(n) < expit(slope * scores)).astype(np.int64)


def test_the_calibration_error_equals_scikit_learns_curve():
    scores, y = predicted()
    p = expit(scores)
    share, mean = calibration_curve(y, p, n_bins=10)
    counts = np.histogram(p, np.linspace(0, 1, 11))[0]
    expected = (np.abs(share - mean) * counts[counts > 0]).sum() / len(y)
    assert expected_calibration_error(p, y) == pytest.approx(expected, rel=1e-12)
    assert expected_calibration_error([0.25, 0.25, 0.25, 0.25], [0, 0, 0, 1]) == 0
    assert expected_calibration_error([0.0, 1.0], [1, 0]) == 1


def test_the_slope_equals_scikit_learns_and_covers_the_truth():
    scores, y = predicted()
    slope = estimate_calibration_slope(scores, y)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(scores[:, None], y)
    assert slope.value == pytest.approx(fitted.coef_[0, 0], rel=1e-5)
    assert slope.low < 0.5 < slope.high
    assert slope.high - slope.low < 0.3


def test_separated_labels_have_no_slope():
    scores = np.arange(10.0)
    with pytest.raises(HQError, match="calibration slope is undefined"):
        estimate_calibration_slope(scores, (scores > 4).astype(int))
