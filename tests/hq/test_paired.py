"""Paired comparisons of detectors, against published figures, `pauc`, scipy and enumeration."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pauc import ROC, compare, cov
from scipy.stats import binomtest, norm, ttest_1samp, ttest_rel

from hq.errors import HQError
from hq.stats.intervals import Estimate, estimate_mean
from hq.stats.paired import (
    decide,
    delong,
    estimate_auroc_difference,
    holm,
    mcnemar,
    smallest_detectable,
    two_sided_p,
)

# DeLong, DeLong & Clarke-Pearson (1988): albumin, total protein, K-G score, and whether surgery
# helped, of 43 patients with ovarian cancer; rows and results as in SAS/STAT's User's Guide, PROC
# LOGISTIC, "Comparing Receiver Operating Characteristic Curves".
OVARIAN_CANCER = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""


@st.composite
def scored_rows(draw, k: int = 2):
    """Scores [k, n] with ties, and labels with two or more rows of each class."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.permutation(np.r_[0, 0, 1, 1, rng.integers(0, 2, draw(st.integers(0, 26)))])
    return rng.integers(0, 8, (k, len(labels))).astype(float), labels


def naive_delong(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs and covariance from all pairs of a positive and a negative, as published."""
    kernels = [
        (np.sign(s[labels == 1][:, None] - s[labels == 0]) + 1) / 2 for s in scores
    ]  # ψ: 1, 1/2 or 0
    v10 = np.array([psi.mean(axis=1) for psi in kernels])
    v01 = np.array([psi.mean(axis=0) for psi in kernels])
    areas = v10.mean(axis=1)
    s10 = (v10 - areas[:, None]) @ (v10 - areas[:, None]).T / (v10.shape[1] - 1)
    s01 = (v01 - areas[:, None]) @ (v01 - areas[:, None]).T / (v01.shape[1] - 1)
    return areas, s10 / v10.shape[1] + s01 / v01.shape[1]


def two_detectors(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    shared = rng.standard_normal(n) + labels
    return np.stack([shared + rng.standard_normal(n), shared + rng.standard_normal(n)]), labels


def test_delong_has_the_published_figures():
    rows = np.array(OVARIAN_CANCER.split(), dtype=float).reshape(-1, 4)
    albumin, protein, kg_score, helped = rows.T
    result = delong(np.stack([albumin, 10 - kg_score, protein]), helped)
    assert result.n == 43
    np.testing.assert_allclose(result.aurocs, [0.7366, 0.7258, 0.6478], atol=5e-5)
    errors = np.sqrt(np.diag(result.covariance))
    np.testing.assert_allclose(errors, [0.0927, 0.1028, 0.1000], atol=6e-5)
    for first, value, se, low, high, p in (
        (0, 0.0108, 0.0953, -0.1761, 0.1976, 0.9102),
        (2, -0.0780, 0.1046, -0.2830, 0.1271, 0.4561),
    ):
        against_kg = result.difference(first, 1)
        figures = (against_kg.value, against_kg.se, against_kg.low, against_kg.high)
        assert figures == pytest.approx((value, se, low, high), abs=6e-5)
        assert two_sided_p(against_kg) == pytest.approx(p, abs=5e-5)


@settings(max_examples=40)
@given(scored_rows(k=3))
def test_delong_is_the_naive_formula(data):
    scores, labels = data
    result = delong(scores, labels)
    areas, covariance = naive_delong(scores, labels)
    np.testing.assert_allclose(result.aurocs, areas, atol=1e-12)
    np.testing.assert_allclose(result.covariance, covariance, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_delong_is_that_of_pauc(seed):
    scores, labels = two_detectors(300, seed)
    first, second = (ROC(labels, np.round(s, 1), direction="<") for s in scores)
    result = delong(np.round(scores, 1), labels)
    assert result.aurocs == pytest.approx([first.auc, second.auc])
    assert result.covariance[0, 1] == pytest.approx(cov(first, second))
    expected, difference = compare(first, second), result.difference(0, 1)
    assert (difference.value, two_sided_p(difference)) == pytest.approx(
        (expected.estimate, expected.p_value)
    )
    assert (difference.low, difference.high) == pytest.approx(expected.conf_int, abs=1e-5)


@settings(max_examples=40)
@given(scored_rows())
def test_delong_sees_ranks_only(data):
    scores, labels = data
    plain, transformed = delong(scores, labels), delong(np.exp(scores / 3) - 5, labels)
    np.testing.assert_array_equal(plain.aurocs, transformed.aurocs)
    np.testing.assert_array_equal(plain.covariance, transformed.covariance)


@settings(max_examples=40)
@given(scored_rows())
def test_swapping_the_scores_turns_the_sign(data):
    scores, labels = data
    forth, back = delong(scores, labels).difference(0, 1), delong(scores, labels).difference(1, 0)
    assert (back.value, back.low, back.high) == (-forth.value, -forth.high, -forth.low)
    assert two_sided_p(back) == two_sided_p(forth)
    swapped = delong(scores[::-1], labels).difference(0, 1)
    assert swapped.value == back.value
    assert two_sided_p(swapped) == pytest.approx(two_sided_p(back))


@settings(max_examples=40)
@given(scored_rows(k=1))
def test_equal_scores_do_not_differ(data):
    scores, labels = data
    difference = delong(np.concatenate([scores, scores]), labels).difference(0, 1)
    assert difference.value == 0
    assert difference.high < 1e-7
    assert two_sided_p(difference) == 1


def test_the_jackknife_is_delongs_for_independent_rows():
    scores, labels = two_detectors(500, 7)
    published = delong(scores, labels).difference(0, 1)
    own = estimate_auroc_difference(*scores, labels)
    assert own.value == pytest.approx(published.value)
    assert own.se == pytest.approx(published.se, rel=0.01)
    assert two_sided_p(own) == pytest.approx(two_sided_p(published), abs=0.01)


def obuchowski(scores: np.ndarray, labels: np.ndarray, units: np.ndarray) -> float:
    """Standard error of a difference of AUROCs of clustered rows (Obuchowski 1997, section 3)."""
    first, second = ((np.sign(s[labels == 1][:, None] - s[labels == 0]) + 1) / 2 for s in scores)
    psi, unit = first - second, np.unique(units, return_inverse=True)[1]
    (n1, n0), count = psi.shape, unit.max() + 1
    positive, negative = unit[labels == 1], unit[labels == 0]
    v10 = np.bincount(positive, psi.mean(axis=1) - psi.mean(), minlength=count)
    v01 = np.bincount(negative, psi.mean(axis=0) - psi.mean(), minlength=count)
    i10, i01 = len(np.unique(positive)), len(np.unique(negative))
    s10 = i10 / ((i10 - 1) * n1) * (v10**2).sum()
    s01 = i01 / ((i01 - 1) * n0) * (v01**2).sum()
    s11 = count / (count - 1) * (v10 * v01).sum()
    return float(np.sqrt(s10 / n1 + s01 / n0 + 2 * s11 / (n1 * n0)))


@pytest.mark.parametrize("seed", range(4))
def test_the_jackknife_is_close_to_obuchowskis_for_units_and_delong_is_not(seed):
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(80), rng.integers(1, 12, 80))
    labels = rng.integers(0, 2, len(units))
    of_units = rng.standard_normal((2, 80, 2))[:, units, labels]
    scores = labels + np.sqrt(0.8) * of_units + np.sqrt(0.2) * rng.standard_normal(of_units.shape)
    own = estimate_auroc_difference(*scores, labels, units)
    assert own.se == pytest.approx(obuchowski(scores, labels, units), rel=0.04)
    as_rows = delong(scores, labels).difference(0, 1)
    assert as_rows.se < 0.75 * own.se


def test_the_difference_of_delong_is_normal():
    scores, labels = two_detectors(300, 1)
    difference = delong(scores, labels).difference(0, 1)
    factor = norm.ppf(0.975) + norm.ppf(0.8)
    assert smallest_detectable(difference) == pytest.approx(factor * difference.se)
    half = norm.ppf(0.95) * difference.se
    assert decide(difference, 0.1).high90 == pytest.approx(difference.value + half)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2, 0.3], [0, 1, 1], "one row per score"),
        (np.zeros((0, 3)), [0, 1, 1], "one row per score"),
        ([[0.1, 0.2, 0.3]], [0, 1, 1], "two rows or more of each class, not 2 and 1"),
        ([[0.1, np.nan, 0.3, 0]], [0, 1, 1, 0], "NaN"),
        ([[0.1, 0.2, 0.3]], [1, 1, 1], "one class"),
        ([[0.1, 0.2, 0.3]], [0, 1], "differ in shape"),
    ],
)
def test_delong_rejects_bad_input(scores, labels, message):
    with pytest.raises(HQError, match=message):
        delong(np.array(scores), labels)


CALLS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


@settings(max_examples=40)
@given(CALLS)
def test_mcnemar_of_rows_is_the_binomial_test(calls):
    a, b = np.array(calls).T
    result = mcnemar(a, b)
    discordant = result.only_first + result.only_second
    assert result.only_first == sum(x and not y for x, y in calls)
    assert discordant == sum(x != y for x, y in calls)
    expected = binomtest(result.only_first, discordant).pvalue if discordant else 1.0
    assert result.p == pytest.approx(expected)
    assert mcnemar(a, b, np.arange(len(a))) == result


def test_mcnemar_on_the_approval_ratings_of_agresti():
    """Agresti (2002), "Categorical data analysis", table 10.1: z² = 17.36 of 150 and 86."""
    a, b = np.repeat([[1, 1, 0, 0], [1, 0, 1, 0]], [794, 150, 86, 570], axis=1)
    result = mcnemar(a, b)
    assert (result.only_first, result.only_second) == (150, 86)
    assert result.difference.value == pytest.approx(0.04)
    assert result.difference.se == pytest.approx(0.0095, abs=1e-4)
    assert result.p == pytest.approx(2 * norm.sf(np.sqrt(17.36)), rel=0.25)


@settings(max_examples=40)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_mcnemar_of_units_is_the_enumeration_of_all_signs(per_unit):
    units = np.repeat(np.arange(len(per_unit)), np.abs(per_unit) + 1)
    right = [np.r_[np.full(abs(d), d > 0), True] for d in per_unit]  # one row on which both are
    other = [np.r_[np.full(abs(d), d < 0), True] for d in per_unit]
    result = mcnemar(np.concatenate(right), np.concatenate(other), units)
    sums = np.array(list(product([-1, 1], repeat=len(per_unit)))) @ np.array(per_unit)
    assert result.p == pytest.approx((np.abs(sums) >= abs(sum(per_unit))).mean())


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_of_many_units_is_close_to_obuchowskis(seed):
    """Obuchowski (1998): z² = (Σ d_g)² / (G/(G − 1) · Σ d_g²)."""
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(400), rng.integers(1, 6, 400))
    of_unit = rng.random((2, 400))[:, units]
    a, b = of_unit + 0.3 * rng.random((2, len(units))) > [[0.40], [0.44]]
    d = np.bincount(units, a.astype(int) - b)
    z = abs(d.sum()) / np.sqrt(400 / 399 * (d**2).sum())
    result = mcnemar(a, b, units)
    assert result.p == pytest.approx(2 * norm.sf(z), abs=0.03)
    assert result.p > 5 * mcnemar(a, b).p or result.p > 0.3  # rows ignore that units agree
    assert two_sided_p(result.difference) == pytest.approx(result.p, abs=0.03)


@settings(max_examples=40)
@given(CALLS, st.integers(0, 2**32 - 1))
def test_swapping_the_detectors_turns_the_sign(calls, seed):
    a, b = np.array(calls).T
    units = np.r_[0, 1, np.random.default_rng(seed).integers(0, 5, len(a) - 2)]
    forth, back = mcnemar(a, b, units), mcnemar(b, a, units)
    assert (back.p, back.only_first) == (forth.p, forth.only_second)
    assert back.difference.value == -forth.difference.value
    same = mcnemar(a, a, units)
    assert (same.p, same.difference.value, same.difference.se) == (1, 0, 0)


def test_the_accuracies_of_independent_rows_have_the_interval_of_scipy():
    a, b = np.random.default_rng(2).integers(0, 2, (2, 80))
    expected = ttest_rel(a, b)
    result, limits = mcnemar(a, b).difference, expected.confidence_interval()
    assert (result.low, result.high) == pytest.approx((limits.low, limits.high))
    assert two_sided_p(result) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(
    ("a", "b", "groups", "message"),
    [
        ([1, 0], [1], None, "cannot be paired"),
        ([1, 2], [1, 0], None, "right .1. or wrong .0."),
        ([1, 0], [1, 0], [3, 3], "one independent unit"),
        ([1, 0], [1, 0], [3], "one group per row"),
    ],
)
def test_mcnemar_rejects_bad_input(a, b, groups, message):
    with pytest.raises(HQError, match=message):
        mcnemar(a, b, None if groups is None else np.array(groups))


@settings(max_examples=40)
@given(
    st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=20, unique=True)
)
def test_p_is_below_5_percent_if_the_interval_excludes_0(values):
    result = estimate_mean(np.array(values))
    p = two_sided_p(result)
    assert p == pytest.approx(ttest_1samp(values, 0).pvalue, abs=1e-9)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (result.low > 0 or result.high < 0)


def test_p_without_a_variance():
    assert two_sided_p(estimate_mean([0.0, 0.0, 0.0])) == 1
    assert two_sided_p(estimate_mean([0.5, 0.5, 0.5])) == 0
    with pytest.raises(HQError, match="no standard error"):
        two_sided_p(Estimate.of_draws(np.array([0.1, 0.2])))


def test_holm_is_that_of_statsmodels():
    """`multipletests(p, method="holm")` of statsmodels 0.15.0."""
    p = [0.01, 0.04, 0.03, 0.005, 0.2]
    np.testing.assert_allclose(holm(p), [0.04, 0.09, 0.09, 0.025, 0.2])
