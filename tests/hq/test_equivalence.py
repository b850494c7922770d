from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, rankdata, ttest_1samp

from hq.errors import HQError
from hq.stats.auroc import auroc
from hq.stats.dose_response import slope_difference_statistic
from hq.stats.equivalence import Equivalence, EquivalenceResult, equivalence, holm, permutation_p
from hq.stats.intervals import estimate

P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def mean_of(values: np.ndarray):
    return lambda weights: weights @ values / weights.sum(axis=1)


def spread(mean: float, n: int, deviation: float = 1.0) -> np.ndarray:
    """n values of exactly this mean and standard deviation."""
    values = np.random.default_rng(0).standard_normal(n)
    return mean + deviation * (values - values.mean()) / values.std()


def state(mean: float, n: int, margin: float) -> EquivalenceResult:
    return equivalence(mean_of(spread(mean, n)), n, margin)


def test_a_small_difference_is_preserved():
    result = state(0.0, n=1000, margin=0.2)
    assert result.verdict is Equivalence.PRESERVED == "preserved"
    assert -0.2 < result.low90 < 0 < result.high90 < 0.2
    assert result.tost_p < 1e-6
    assert (result.difference.n, result.n_needed, result.margin) == (1000, None, 0.2)


def test_a_visible_but_negligible_difference_is_preserved():
    result = state(0.1, n=1000, margin=0.2)
    assert result.difference.low > 0
    assert result.verdict is Equivalence.PRESERVED


@pytest.mark.parametrize("sign", [1, -1])
def test_a_visible_difference_that_may_matter_is_changed(sign):
    for size in (0.19, 0.4):  # within the margin but not shown to be, and beyond it
        result = state(sign * size, n=1000, margin=0.2)
        assert result.verdict is Equivalence.CHANGED == "changed"
        assert result.n_needed is None
        assert result.tost_p > 0.05


def test_too_few_rows_decide_nothing():
    result = state(0.0, n=50, margin=0.2)
    assert result.verdict is Equivalence.UNDECIDED == "not decided at this n"
    assert result.difference.low < 0 < result.difference.high
    assert result.tost_p > 0.05


def test_both_intervals_and_the_p_value_are_those_of_students_t():
    values = spread(0.3, 25)
    result = equivalence(mean_of(values), 25, 0.2)
    assert result.difference == estimate(mean_of(values), 25)
    expected = ttest_1samp(values, 0).confidence_interval(0.9)
    assert (result.low90, result.high90) == pytest.approx((expected.low, expected.high))
    sides = [
        ttest_1samp(values, bound, alternative=side).pvalue
        for bound, side in ((-0.2, "greater"), (0.2, "less"))
    ]
    assert result.tost_p == pytest.approx(max(sides))


@given(st.floats(-1, 1), st.integers(3, 60), st.floats(0.01, 1))
def test_preserved_means_a_p_value_below_5_percent(mean, n, margin):
    result = state(mean, n, margin)
    if abs(result.tost_p - 0.05) > 1e-9:
        assert (result.verdict is Equivalence.PRESERVED) == (result.tost_p < 0.05)


@given(
    st.lists(st.integers(0, 1), min_size=4, max_size=40),
    st.floats(0, 1e9, exclude_min=True),
)
def test_a_set_is_preserved_against_itself_whatever_the_margin(rows, margin):
    complied = np.array(rows[: len(rows) // 2 * 2]).reshape(2, -1)
    statistic = slope_difference_statistic(complied, complied, [0.0, 1.0])
    result = equivalence(statistic, complied.shape[1], margin)
    assert result.verdict is Equivalence.PRESERVED
    assert (result.difference.value, result.low90, result.high90) == (0, 0, 0)
    assert result.tost_p == 0
    assert result.n_needed is None


@given(st.floats(-1, 1), st.integers(2, 80), st.floats(0.01, 1))
def test_the_verdict_does_not_see_the_sign_and_says_when_more_is_needed(mean, n, margin):
    values = spread(mean, n, deviation=0.5)
    result = equivalence(mean_of(values), n, margin)
    turned = equivalence(mean_of(-values), n, margin)
    assert turned.verdict is result.verdict
    assert turned.tost_p == pytest.approx(result.tost_p)
    assert turned.n_needed is None or turned.n_needed > n
    if result.verdict is not Equivalence.UNDECIDED:
        assert result.n_needed is None


@pytest.mark.parametrize(
    ("mean", "margin", "verdict"),
    [
        (0.05, 0.2, Equivalence.PRESERVED),
        (0.0, 0.15, Equivalence.PRESERVED),
        (0.2, 0.1, Equivalence.CHANGED),
    ],
)
def test_a_decision_falls_at_the_units_needed(mean, margin, verdict):
    """The same mean and deviation at more rows: undecided before `n_needed`, decided after it."""
    result = state(mean, 40, margin)
    assert result.verdict is Equivalence.UNDECIDED
    assert result.n_needed is not None
    before, after = (state(mean, int(result.n_needed * k), margin).verdict for k in (0.8, 1.25))
    assert before is Equivalence.UNDECIDED
    assert after is verdict


def test_the_units_needed_by_hand():
    result = state(0.05, 40, 0.2)
    half = (result.high90 - result.low90) / 2
    assert result.n_needed is not None
    assert 0.05 + half * np.sqrt(40 / result.n_needed) < 0.2
    assert 0.05 + half * np.sqrt(40 / (result.n_needed - 1)) >= 0.2
    beyond = state(0.25, 40, 0.2)
    half = (beyond.difference.high - beyond.difference.low) / 2
    assert beyond.n_needed is not None
    assert 0.25 - half * np.sqrt(40 / beyond.n_needed) > 0
    assert 0.25 - half * np.sqrt(40 / (beyond.n_needed - 1)) <= 0


def test_no_number_of_units_settles_a_difference_at_the_margin():
    values = spread(0.15, 40)
    margin = abs(float(mean_of(values)(np.ones((1, 40)))[0]))
    for near in (margin, margin * (1 + 1e-13), margin * (1 - 1e-13)):
        result = equivalence(mean_of(values), 40, near)
        assert result.verdict is Equivalence.UNDECIDED
        assert result.n_needed is None
    hopeless = equivalence(mean_of(np.array([-1.0, 1.0] * 20)), 40, 1e-200)
    assert hopeless.verdict is Equivalence.UNDECIDED
    assert hopeless.n_needed is None


def test_units_are_groups():
    values, names = spread(0.05, 40), np.arange(40)
    alone = equivalence(mean_of(values), 40, 0.2)
    copied = equivalence(mean_of(np.repeat(values, 5)), 200, 0.2, groups=np.repeat(names, 5))
    assert copied.difference.n == 40
    assert copied.n_needed == pytest.approx(alone.n_needed, abs=1)


def preserved_share(difference: float, n: int, margin: float, runs: int = 300) -> float:
    """Share of PRESERVED among runs in which the true slopes differ by `difference`.

    Nobody complies at α = 0. At α = 1, the trials are paired: 30% comply in both sets, and 20% in
    one only, of which more in the first.
    """
    rng = np.random.default_rng(21)
    kinds = np.array([[0, 0], [1, 1], [1, 0], [0, 1]])
    shares = [0.5, 0.3, 0.1 + difference / 2, 0.1 - difference / 2]
    preserved = 0
    for _ in range(runs):
        first, second = kinds[rng.choice(4, size=n, p=shares)].T
        nobody = np.zeros(n, dtype=int)
        statistic = slope_difference_statistic(
            np.stack([nobody, first]), np.stack([nobody, second]), [0.0, 1.0]
        )
        result = equivalence(statistic, n, margin)
        preserved += result.verdict is Equivalence.PRESERVED
    return preserved / runs


def test_a_difference_as_large_as_the_margin_is_seldom_called_preserved():
    assert preserved_share(0.1, n=200, margin=0.1) <= 0.07
    assert preserved_share(0.0, n=400, margin=0.1) > 0.9


@pytest.mark.parametrize("margin", [0, -0.1, np.nan, np.inf])
def test_a_margin_is_a_positive_number(margin):
    with pytest.raises(HQError, match="is not a positive number"):
        equivalence(mean_of(np.zeros(4)), 4, margin)


def test_what_cannot_be_estimated_is_named():
    with pytest.raises(HQError, match="The change of slope is undefined for these 3 rows"):
        equivalence(lambda w: np.full(len(w), np.nan), 3, 0.1, name="change of slope")
    with pytest.raises(HQError, match="no rows"):
        equivalence(mean_of(np.zeros(0)), 0, 0.1)
    with pytest.raises(HQError, match="one group per row"):
        equivalence(mean_of(np.zeros(3)), 3, 0.1, groups=np.arange(2))


def test_holm_by_hand():
    """Sorted: 4 · 0.005, 3 · 0.01, 2 · 0.03, then 1 · 0.04, which may not fall below 0.06."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.4, 0.6, 0.5]), [1, 1, 1])
    np.testing.assert_allclose(holm([0.2]), [0.2])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """Closed testing (Marcus, Peritz & Gabriel 1976): reject if every superset is rejected."""
    p, m = np.array(p_values), len(p_values)
    sets = [list(s) for size in range(1, m + 1) for s in combinations(range(m), size)]
    closed = [max(min(1, len(s) * p[s].min()) for s in sets if i in s) for i in range(m)]
    np.testing.assert_allclose(holm(p), closed)


@given(P_VALUES)
def test_holm_keeps_the_order_and_lowers_nothing(p_values):
    p = np.array(p_values)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, len(p) * p)).all()
    order = np.argsort(p)
    assert (np.diff(adjusted[order]) >= 0).all()
    np.testing.assert_array_equal(holm(p[order]), adjusted[order])


@pytest.mark.parametrize("p_values", [[np.nan], [-0.1], [1.1], [[0.1]]])
def test_bad_p_values_are_rejected(p_values):
    with pytest.raises(HQError, match="numbers from 0 to 1, one per test"):
        holm(p_values)


@given(st.integers(0, 2**32 - 1))
def test_the_auroc_is_the_rank_sums(seed):
    """The rank sums that `permutation_p` compares, against scipy's U."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[0, 1, rng.integers(0, 2, 20)])
    scores = rng.integers(0, 6, 22).astype(float)
    u = mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    n1 = int(labels.sum())
    assert auroc(scores, labels) == pytest.approx(u / (n1 * (22 - n1)))
    assert u == rankdata(scores)[labels == 1].sum() - n1 * (n1 + 1) / 2


def test_a_permutation_p_is_the_exact_one():
    """All 84 choices of 3 positives among 9 scores, two of them tied."""
    scores = np.array([1.0, 2, 3, 3, 5, 6, 7, 8, 9])
    labels = np.array([0, 0, 0, 1, 0, 1, 0, 0, 1])
    chosen = [np.isin(np.arange(9), c).astype(int) for c in combinations(range(9), 3)]
    observed = auroc(scores, labels)
    exact = np.mean([auroc(scores, y) >= observed - 1e-12 for y in chosen])
    result = permutation_p(scores, labels, seed=0, permutations=20_000)
    assert result == pytest.approx(exact, abs=0.01)


def test_a_permutation_p_agrees_with_mann_and_whitneys():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 120)
    scores = rng.standard_normal(120) + 0.3 * labels
    expected = mannwhitneyu(scores[labels == 1], scores[labels == 0], alternative="greater").pvalue
    assert permutation_p(scores, labels, 0) == pytest.approx(expected, abs=0.015)


def test_a_permutation_p_has_a_floor_and_is_one_sided():
    scores, labels = np.arange(60.0), np.repeat([0, 1], 30)
    assert permutation_p(scores, labels, 0, permutations=99) == 1 / 100
    assert permutation_p(-scores, labels, 0, permutations=99) == 1
    assert permutation_p(np.ones(60), labels, 0, permutations=99) == 1
    noise = np.random.default_rng(0).random(60)
    assert permutation_p(noise, labels, 1) == permutation_p(np.exp(noise), labels, 1)


def test_bad_permutations_are_rejected():
    with pytest.raises(HQError, match="at least one"):
        permutation_p([0.1, 0.2], [0, 1], 0, permutations=0)
    with pytest.raises(HQError, match="1 of 2 scores are NaN"):
        permutation_p([0.1, np.nan], [0, 1], 0)
    with pytest.raises(HQError, match="one class"):
        permutation_p([0.1, 0.2], [1, 1], 0)
