import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, ttest_1samp
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score

from hq.errors import HQError
from hq.stats.auroc import (
    auroc,
    auroc_statistic,
    estimate_auroc,
    estimate_auroc_difference,
    grouped_auroc_statistic,
)
from hq.stats.intervals import (
    Estimate,
    clopper_pearson,
    combined_interval,
    degrees_of_freedom,
    estimate,
    estimate_mean,
    estimate_rate,
    smallest_detectable,
)


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels of both classes."""
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-8, 8), min_size=n, max_size=n))
    labels = draw(
        st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < n)
    )
    return np.array(scores, dtype=float), np.array(labels)


@given(scored())
def test_auroc_equals_scikit_learns(data):
    scores, labels = data
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(scored(), st.integers(0, 2**32 - 1))
def test_weighted_auroc_equals_scikit_learns(data, seed):
    scores, labels = data
    weights = np.random.default_rng(seed).integers(1, 6, size=(3, len(labels))).astype(float)
    expected = [roc_auc_score(labels, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(auroc_statistic(scores, labels)(weights), expected, atol=1e-12)


@given(scored(), st.integers(0, 2**32 - 1))
def test_auroc_over_groups_is_that_over_their_rows(data, seed):
    scores, labels = data
    rng = np.random.default_rng(seed)
    groups = rng.integers(4, size=len(labels))
    names, of_row = np.unique(groups, return_inverse=True)
    weights = rng.integers(0, 3, size=(5, len(names))).astype(float)
    np.testing.assert_allclose(
        grouped_auroc_statistic(scores, labels, groups)(weights),
        auroc_statistic(scores, labels)(weights[:, of_row]),
        atol=1e-12,
    )


@given(scored())
def test_auroc_sees_ranks_only_and_turns_with_the_sign(data):
    scores, labels = data
    area = auroc(scores, labels)
    assert auroc(np.exp(scores / 3), labels) == pytest.approx(area, abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(scores, 1 - labels) == pytest.approx(1 - area, abs=1e-12)


def test_infinite_scores_are_ranked():
    assert auroc([-np.inf, 0.0, np.inf, np.inf], [0, 0, 1, 0]) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1, 1], "one class"),
        ([1.0, np.nan], [0, 1], "1 of 2 scores are NaN"),
        ([1.0, 2.0], [0, 2], "Labels must be"),
        ([1.0, 2.0, 3.0], [0, 1], "differ"),
        ([], [], "one class"),
    ],
)
def test_auroc_rejects_bad_input(scores, labels, message):
    with pytest.raises(HQError, match=message):
        auroc(scores, labels)


@given(scored(), st.integers(0, 2**32 - 1))
def test_strata_compare_within_a_stratum_only(data, seed):
    scores, labels = data
    rng = np.random.default_rng(seed)
    strata = rng.integers(3, size=len(labels))
    weights = rng.integers(0, 4, size=(2, len(labels))).astype(float)
    for w, area in zip(weights, auroc_statistic(scores, labels, strata)(weights), strict=True):
        wins = pairs = 0.0
        for i in np.flatnonzero(labels == 1):
            for j in np.flatnonzero((labels == 0) & (strata == strata[i])):
                pairs += w[i] * w[j]
                wins += w[i] * w[j] * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
        assert np.isnan(area) if pairs == 0 else area == pytest.approx(wins / pairs, abs=1e-12)


def test_strata_ignore_a_shift_of_the_scores_between_folds():
    rng = np.random.default_rng(0)
    labels, folds = rng.integers(0, 2, 200), rng.integers(0, 5, 200)
    scores = rng.standard_normal(200) + labels
    shifted = scores + 10 * folds
    assert auroc(shifted, labels, folds) == auroc(scores, labels, folds)
    assert estimate_auroc(shifted, labels, strata=folds) == estimate_auroc(
        scores, labels, strata=folds
    )
    assert auroc(shifted, labels) < auroc(scores, labels) - 0.1


def test_a_stratum_with_one_class_has_no_pairs():
    assert auroc([3.0, 1.0, 9.0], [1, 0, 0], np.array(["a", "a", "b"])) == 1
    with pytest.raises(HQError, match="Every stratum has one class"):
        auroc([3.0, 1.0], [1, 0], np.array(["a", "b"]))
    with pytest.raises(HQError, match="strata"):
        auroc([3.0, 1.0], [1, 0], np.array(["a"]))


def test_the_mean_of_independent_rows_has_the_t_interval_of_scipy():
    values = np.random.default_rng(3).standard_normal(12)
    result, expected = estimate_mean(values), ttest_1samp(values, 0).confidence_interval()
    assert result.value == pytest.approx(values.mean())
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert (result.n, result.df) == (12, pytest.approx(11))
    assert result.se == pytest.approx(values.std(ddof=1) / np.sqrt(12))
    expected = ttest_1samp(values, 0).confidence_interval(0.8)
    assert result.interval(0.8) == pytest.approx((expected.low, expected.high))


def kernel(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for each positive (rows) and negative (columns): above, equal, below."""
    difference = scores[labels == 1][:, None] - scores[labels == 0]
    return (np.sign(difference) + 1) / 2


def delong(scores: np.ndarray, labels: np.ndarray) -> float:
    """Standard error of an AUROC of independent rows (DeLong, DeLong & Clarke-Pearson 1988)."""
    psi = kernel(scores, labels)
    parts = (psi.mean(axis=axis).var(ddof=1) / psi.shape[1 - axis] for axis in (1, 0))
    return float(np.sqrt(sum(parts)))


def obuchowski(scores: np.ndarray, labels: np.ndarray, units: np.ndarray) -> float:
    """Standard error of an AUROC of clustered rows (Obuchowski 1997, section 2)."""
    psi, unit = kernel(scores, labels), np.unique(units, return_inverse=True)[1]
    theta, (n1, n0), count = psi.mean(), psi.shape, unit.max() + 1
    positive, negative = unit[labels == 1], unit[labels == 0]
    v10 = np.bincount(positive, psi.mean(axis=1) - theta, minlength=count)
    v01 = np.bincount(negative, psi.mean(axis=0) - theta, minlength=count)
    i10, i01 = len(np.unique(positive)), len(np.unique(negative))
    s10 = i10 / ((i10 - 1) * n1) * (v10**2).sum()
    s01 = i01 / ((i01 - 1) * n0) * (v01**2).sum()
    s11 = count / (count - 1) * (v10 * v01).sum()
    return float(np.sqrt(s10 / n1 + s01 / n0 + 2 * s11 / (n1 * n0)))


def clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and units: 60 units of 1 to 9 rows, each with labels of one class.

    Scores share a part within a unit. The AUROC is Φ(1 / √2).
    """
    units = np.repeat(np.arange(60), rng.integers(1, 10, 60))
    labels = np.tile([0, 1], 30)[units]
    shared, own = rng.standard_normal(60)[units], rng.standard_normal(len(units))
    return labels + np.sqrt(0.8) * shared + np.sqrt(0.2) * own, labels, units


@pytest.mark.parametrize("seed", range(5))
def test_the_standard_error_of_an_auroc_is_close_to_published_ones(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 300)
    scores = rng.standard_normal(300) + labels
    assert estimate_auroc(scores, labels).se == pytest.approx(delong(scores, labels), rel=0.01)
    scores, labels, units = clustered(rng)
    mixed = rng.permuted(labels)
    for y in (labels, mixed):
        expected = obuchowski(scores + y, y, units)
        assert estimate_auroc(scores + y, y, units).se == pytest.approx(expected, rel=0.04)


def test_the_interval_of_an_auroc_is_symmetric_on_the_logit_scale():
    scores, labels, units = clustered(np.random.default_rng(0))
    area = estimate_auroc(scores, labels, units)
    logits = [np.log(p / (1 - p)) for p in (area.low, area.value, area.high)]
    assert logits[1] == pytest.approx((logits[0] + logits[2]) / 2)
    turned = estimate_auroc(-scores, labels, units)
    assert (turned.low, turned.high) == pytest.approx((1 - area.high, 1 - area.low))


def test_rows_of_one_unit_count_once():
    """The interval over units covers the truth; over rows, it is too narrow."""
    rng = np.random.default_rng(11)
    truths = {"auroc": norm.cdf(1 / np.sqrt(2)), "mean": 0.5}
    inside = {(name, grouped): 0 for name in truths for grouped in (False, True)}
    for _ in range(200):
        scores, labels, units = clustered(rng)
        for grouped in (False, True):
            groups = units if grouped else None
            for name, result in (
                ("auroc", estimate_auroc(scores, labels, groups)),
                ("mean", estimate_mean(scores - labels + 0.5, groups)),
            ):
                inside[name, grouped] += result.low <= truths[name] <= result.high
    for name in truths:
        assert 0.91 <= inside[name, True] / 200 <= 0.99, inside
        assert inside[name, False] / 200 < 0.75, inside


@pytest.mark.parametrize("estimator", [estimate_auroc, lambda s, y, g: estimate_mean(s, g)])
def test_names_of_units_and_the_order_of_rows_do_not_matter(estimator):
    scores, labels, units = clustered(np.random.default_rng(4))
    reference = estimator(scores, labels, units).model_dump()
    order = np.random.default_rng(5).permutation(len(units))
    names = np.array([f"unit {(7 * unit) % 60}" for unit in units])
    for changed in (
        estimator(scores, labels, names),
        estimator(scores[order], labels[order], units[order]),
    ):
        assert changed.model_dump() == pytest.approx(reference)


def test_rows_copied_within_their_unit_carry_no_information():
    rng = np.random.default_rng(1)
    labels, scores, units = rng.integers(0, 2, 60), rng.random(60), rng.integers(0, 20, 60)
    copies = [np.repeat(values, 4) for values in (scores, labels, units)]
    alone = estimate_auroc(scores, labels, units).model_dump()
    assert estimate_auroc(*copies).model_dump() == pytest.approx(alone)
    alone = estimate_mean(scores, units).model_dump()
    assert estimate_mean(copies[0], copies[2]).model_dump() == pytest.approx(alone)


def test_degrees_of_freedom_count_large_units():
    rng = np.random.default_rng(2)
    same = np.repeat(np.arange(20), 5)
    assert estimate_mean(rng.standard_normal(100), same).df == pytest.approx(19)
    units = np.repeat(np.arange(62), [100, 100, *([1] * 60)])
    shared = rng.standard_normal(62)[units]
    dependent = estimate_mean(shared, units)
    assert dependent.df is not None
    assert 1 <= dependent.df < 3  # two units have nearly all of the variance
    independent = [estimate_mean(rng.standard_normal(260), units).df for _ in range(20)]
    assert np.mean(independent) > dependent.df


def test_degrees_of_freedom_solve_their_equations():
    """Satterthwaite's for v = a·m + b·m² with Σ v·(m - observed mean size) = 0."""
    m = np.array([1.0, 1, 1, 2, 2, 3, 4])
    squares = np.array([0.2, 0.1, 0.3, 0.5, 0.4, 1.1, 2.0])
    from_mean = m - (m * squares).sum() / squares.sum()
    v = m * (from_mean * m**2).sum() - m**2 * (from_mean * m).sum()
    assert (v > 0).all()
    expected = v.sum() ** 2 / (v**2).sum() - 1
    assert degrees_of_freedom(squares, m) == pytest.approx(expected)
    assert degrees_of_freedom(7 * squares, m) == pytest.approx(expected)
    small, large = np.eye(7)[0], np.eye(7)[6]  # beyond both ends: b = 0, and a = 0
    assert degrees_of_freedom(small, m) == pytest.approx(14**2 / 36 - 1)
    assert degrees_of_freedom(large, m) == pytest.approx(36**2 / 372 - 1)
    assert degrees_of_freedom(np.zeros(7), m) == 6


def test_variances_of_independent_parts_add_up():
    both = combined_interval(0.3, 12, [(0.04, 5), (0.09, 20)])
    df = 0.13**2 / (0.04**2 / 5 + 0.09**2 / 20)
    half = student_t.ppf(0.975, df) * np.sqrt(0.13)
    assert (both.value, both.n) == (0.3, 12)
    assert (both.se, both.df) == pytest.approx((np.sqrt(0.13), df))
    assert (both.low, both.high) == pytest.approx((0.3 - half, 0.3 + half))
    none = combined_interval(0.3, 12, [(0.0, 5), (0.0, 20)])
    assert (none.low, none.high, none.se, none.df) == (0.3, 0.3, 0, 5)


def test_chunks_do_not_change_an_estimate(monkeypatch):
    scores, labels, units = clustered(np.random.default_rng(0))
    expected = estimate_auroc(scores, labels, units)
    monkeypatch.setattr("hq.stats.intervals._CHUNK", 7 * len(units))
    assert estimate_auroc(scores, labels, units) == expected


@pytest.mark.parametrize("value", [0, 1])
def test_a_perfect_auroc_has_the_interval_of_its_rarer_class(value):
    scores, labels = np.arange(10.0), np.repeat([0, 1], [6, 4])
    area = estimate_auroc(scores if value else -scores, labels)
    assert area.value == value
    assert (area.low, area.high) == pytest.approx(clopper_pearson(4 * value, 4))
    pairs = estimate_auroc(scores if value else -scores, labels, np.arange(10) // 2)
    assert (pairs.low, pairs.high) == pytest.approx(clopper_pearson(2 * value, 2))


def test_equal_scores_have_an_empty_interval():
    area = estimate_auroc(np.ones(10), np.repeat([0, 1], 5))
    assert (area.value, area.low, area.high, area.se) == (0.5, 0.5, 0.5, 0)


def test_a_general_statistic_at_the_end_of_the_logit_scale():
    result = estimate(lambda w: np.ones(len(w)), 8, scale="logit")
    assert (result.low, result.high) == pytest.approx(clopper_pearson(8, 8))


def test_a_statistic_that_is_undefined_is_named():
    with pytest.raises(HQError, match="The correlation is undefined for these 3 rows"):
        estimate(lambda w: np.full(len(w), np.nan), 3, name="correlation")
    with pytest.raises(HQError, match="The AUROC is undefined without 1 of its 4 independent"):
        estimate_auroc([0.1, 0.2, 0.3, 0.9], [0, 0, 0, 1])


def test_rows_of_two_units_are_needed():
    with pytest.raises(HQError, match="no rows"):
        estimate_mean([])
    with pytest.raises(HQError, match="All 3 rows belong to one independent unit"):
        estimate_mean([1.0, 2.0, 3.0], np.array(["a", "a", "a"]))
    with pytest.raises(HQError, match="one group per row"):
        estimate_mean([1.0, 2.0], np.array(["a"]))


@pytest.mark.parametrize("values", [[np.nan, 1.0], [[1.0], [2.0]], 0.5])
def test_a_mean_needs_one_finite_number_per_row(values):
    with pytest.raises(HQError, match="finite"):
        estimate_mean(values)


def test_a_paired_difference_is_far_narrower_than_two_intervals():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 100)
    first = rng.standard_normal(200) + labels
    second = first + 0.05 * rng.standard_normal(200)
    difference = estimate_auroc_difference(first, second, labels)
    alone = estimate_auroc(first, labels)
    assert difference.value == pytest.approx(auroc(first, labels) - auroc(second, labels))
    assert difference.high - difference.low < (alone.high - alone.low) / 4
    same = estimate_auroc_difference(first, 3 * first, labels)
    assert (same.value, same.low, same.high, same.se) == (0, 0, 0, 0)


def test_a_difference_from_several_subtracts_their_mean():
    rng = np.random.default_rng(5)
    labels, first, others = rng.integers(0, 2, 60), rng.random(60), rng.random((3, 60))
    strata = rng.integers(0, 2, 60)
    result = estimate_auroc_difference(first, others, labels, strata=strata)
    mean = np.mean([auroc(row, labels, strata) for row in others])
    assert result.value == pytest.approx(auroc(first, labels, strata) - mean)


@pytest.mark.parametrize("hits", [0, 1, 7, 30])
def test_a_rate_of_independent_rows_has_clopper_and_pearsons_interval(hits):
    values = np.arange(30) < hits
    rate, exact = estimate_rate(values), binomtest(hits, 30).proportion_ci(method="exact")
    assert rate.value == pytest.approx(hits / 30)
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high))
    equal = estimate_rate(values, equal_units=True)
    assert (equal.low, equal.high) == pytest.approx((exact.low, exact.high))


def test_a_rate_of_units_that_agree_has_the_interval_of_the_units():
    """Each unit is one trial: Korn & Graubard's n_eff is the number of units."""
    per_unit = np.arange(40) < 10
    rate = estimate_rate(np.repeat(per_unit, 5), np.repeat(np.arange(40), 5))
    exact = clopper_pearson(10, 40)
    assert (rate.low, rate.high) == pytest.approx(exact, abs=0.01)
    assert rate.high - rate.low >= exact[1] - exact[0]
    # 1 + p·(1 - p)/se² is the number of units here.
    trials = 40 * (student_t.ppf(0.975, 199) / student_t.ppf(0.975, 39)) ** 2
    assert (rate.low, rate.high) == pytest.approx(clopper_pearson(0.25 * trials, trials))
    none = estimate_rate(np.zeros(200), np.repeat(np.arange(40), 5))
    assert (none.low, none.high) == pytest.approx(clopper_pearson(0, 40))


def test_units_of_a_rate_can_have_equal_weights():
    values, units = np.array([1, 1, 1, 1, 0, 0]), np.array(["a", "a", "a", "a", "b", "c"])
    assert estimate_rate(values, units).value == pytest.approx(4 / 6)
    equal = estimate_rate(values, units, equal_units=True)
    assert equal.value == pytest.approx(1 / 3)
    assert equal.n == 3
    assert equal.df == pytest.approx(2)


def test_the_rows_of_small_units_show_how_far_a_large_unit_could_change_a_rate():
    """The large unit has the overall rate, so the jackknife sees no variance from it."""
    sizes = np.array([60, *([2] * 40)])
    units = np.repeat(np.arange(41), sizes)
    positive = np.isin(units, [3, 9, 20, 33])  # 10% of the small units, and all their rows
    positive[:6] = True
    rate = estimate_rate(positive, units)
    assert rate.value == pytest.approx(0.1)
    correlation = 1 - 60 * 0.1 * 0.9 / (140 - 41) / (0.1 * 0.9)
    trials = 140**2 / ((1 - correlation) * 140 + correlation * (sizes**2).sum())
    assert (rate.low, rate.high) == pytest.approx(clopper_pearson(0.1 * trials, trials))
    assert rate.se is not None
    assert 1 + 0.1 * 0.9 / rate.se**2 > 2 * trials


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_rate_needs_values_from_0_to_1(value):
    with pytest.raises(HQError, match="from 0 to 1"):
        estimate_rate([0.5, value])


def test_the_smallest_detectable_difference_is_detected_four_times_in_five():
    rng = np.random.default_rng(8)
    size = smallest_detectable(estimate_mean(np.tile([-1.0, 1.0], 15)))
    deviation = np.sqrt(30 / 29)  # of those values
    runs = [estimate_mean(size + deviation * rng.standard_normal(30)) for _ in range(1000)]
    assert np.mean([run.low > 0 or run.high < 0 for run in runs]) == pytest.approx(0.8, abs=0.04)


def test_the_smallest_detectable_difference_in_closed_form():
    difference = Estimate(value=0.1, low=0, high=0.2, n=10**9, se=0.05, df=1e9)
    assert smallest_detectable(difference) == pytest.approx((1.95996 + 0.84162) * 0.05, rel=1e-4)
    assert smallest_detectable(difference, 0.9, 0.01) == pytest.approx(
        (2.57583 + 1.28155) * 0.05, rel=1e-4
    )
    with pytest.raises(HQError, match="has no standard error"):
        smallest_detectable(Estimate.of_draws(np.arange(10.0)))
    with pytest.raises(HQError, match="has no standard error"):
        Estimate(value=0.1, low=0, high=0.2, n=9, se=0.05).interval(0.9)


def test_draws_have_the_interval_of_95_percent_of_them():
    result = Estimate.of_draws(np.arange(1001.0))
    assert (result.value, result.low, result.high, result.n) == (500, 25, 975, 1001)
    assert (result.se, result.df) == (None, None)


def test_an_estimate_reads_as_value_and_interval():
    assert str(estimate_mean([0.5, 0.5])) == "0.500 [0.500, 0.500]"


def test_an_estimate_of_an_earlier_version_is_read():
    old = '{"value": 0.7, "low": 0.6, "high": 0.8, "n": 50, "seed": 3}'
    assert Estimate.model_validate_json(old) == Estimate(value=0.7, low=0.6, high=0.8, n=50)
