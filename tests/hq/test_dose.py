import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import kendalltau, linregress

from hq.errors import HQError
from hq.stats.dose_response import (
    draw_p_value,
    estimate_curvature,
    estimate_rates,
    estimate_reduction,
    estimate_slope,
    estimate_slope_difference,
    estimate_slope_excess,
    is_monotone,
    monotonicity,
    r_squared,
    rate_statistic,
    slope_difference_statistic,
    slope_statistic,
)
from hq.stats.intervals import estimate, estimate_rate

ALPHAS = np.array([0.0, 0.5, 1.0, 2.0, 3.0])


def trials(seed: int, n: int = 60, slope: float = 0.2) -> np.ndarray:
    """Trials that comply more often the larger α: each has one threshold for all α."""
    rng = np.random.default_rng(seed)
    return rng.random(n) < np.clip(0.2 + slope * ALPHAS, 0, 1)[:, None]


def slope(compliance: np.ndarray, alphas=ALPHAS) -> float:
    return float(slope_statistic(compliance, alphas)(np.ones((1, compliance.shape[1])))[0])


@st.composite
def responses(draw) -> tuple[np.ndarray, np.ndarray]:
    """Rates of 0 to 20 trials out of 20, many alike, at different α."""
    alphas = draw(st.lists(st.integers(-20, 20), min_size=2, max_size=8, unique=True))
    counts = st.lists(st.integers(0, 20), min_size=len(alphas), max_size=len(alphas))
    return np.array(draw(counts)) / 20, np.array(alphas) / 4


@st.composite
def tables(draw) -> tuple[np.ndarray, np.ndarray]:
    _, alphas = draw(responses())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random((len(alphas), draw(st.integers(1, 12)))), alphas


@given(tables(), st.integers(0, 2**32 - 1))
def test_weighted_rates_and_slope_are_those_of_repeated_trials(data, seed):
    compliance, alphas = data
    counts = np.random.default_rng(seed).integers(1, 4, size=(3, compliance.shape[1]))
    repeated = [np.repeat(compliance, c, axis=1).mean(axis=1) for c in counts]
    np.testing.assert_allclose(
        rate_statistic(compliance)(counts.astype(float)), repeated, atol=1e-12
    )
    np.testing.assert_allclose(
        slope_statistic(compliance, alphas)(counts.astype(float)),
        [np.polyfit(alphas, r, 1)[0] for r in repeated],
        atol=1e-9,
    )


def test_rates_have_the_interval_of_a_rate():
    compliance, groups = trials(0), np.arange(60) // 3
    result = estimate_rates(compliance, groups)
    assert result == [estimate_rate(row, groups) for row in compliance]
    assert [e.value for e in result] == pytest.approx(compliance.mean(axis=1))


def test_the_slope_is_that_of_a_least_squares_line():
    compliance = trials(1)
    result = estimate_slope(compliance, ALPHAS)
    assert result.value == pytest.approx(np.polyfit(ALPHAS, compliance.mean(axis=1), 1)[0])
    assert result.low < result.value < result.high
    assert result.low > 0
    assert result.n == 60


@given(tables(), st.floats(0, 1))
def test_the_slope_is_linear_in_the_rates(data, share):
    compliance, alphas = data
    other = compliance[::-1]
    mixed = slope(share * compliance + (1 - share) * other, alphas)
    expected = share * slope(compliance, alphas) + (1 - share) * slope(other, alphas)
    assert mixed == pytest.approx(expected, abs=1e-9)


@given(tables(), st.integers(-50, 50), st.sampled_from([-2.0, 0.5, 4.0]))
def test_the_slope_does_not_see_where_alpha_starts_and_scales_with_its_unit(data, shift, unit):
    compliance, alphas = data
    alone = slope(compliance, alphas)
    assert slope(compliance, alphas + shift) == pytest.approx(alone, abs=1e-9)
    assert slope(compliance, alphas * unit) == pytest.approx(alone / unit, abs=1e-9)


def test_trials_that_never_change_have_a_slope_of_exactly_nothing():
    never_changing = np.tile(np.arange(30) % 3 == 0, (3, 1))
    alphas = [0.1, 0.2, 0.4]  # minus their mean, they do not add up to 0 in floating point
    result = estimate_slope(never_changing, alphas)
    assert (result.value, result.low, result.high) == (0, 0, 0)


def test_the_slope_interval_covers_the_truth_about_95_times_in_100():
    truth = np.polyfit(ALPHAS, np.clip(0.2 + 0.2 * ALPHAS, 0, 1), 1)[0]
    inside = 0
    for seed in range(200):
        result = estimate_slope(trials(seed, n=80), ALPHAS)
        inside += result.low <= truth <= result.high
    assert 0.90 <= inside / 200 <= 0.99


def test_groups_of_trials_count_once():
    compliance = trials(2, n=30)
    alone = estimate_slope(compliance, ALPHAS)
    names = np.array([f"entity {i:02d}" for i in range(30)])
    copied = estimate_slope(np.repeat(compliance, 4, axis=1), ALPHAS, np.repeat(names, 4))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.n == alone.n == 30


@given(tables())
def test_a_set_does_not_differ_from_itself(data):
    compliance, alphas = data
    assume(compliance.shape[1] > 1)
    result = estimate_slope_difference(compliance, compliance, alphas)
    assert (result.value, result.low, result.high) == (0, 0, 0)


def test_a_difference_of_slopes_is_paired():
    first = trials(3, n=200)
    second = first.copy()
    second[-1, :6] = False  # six trials stop complying at the largest α
    result = estimate_slope_difference(first, second, ALPHAS)
    alone = estimate_slope(first, ALPHAS)
    assert result.value == pytest.approx(slope(first) - slope(second))
    assert result.high - result.low < (alone.high - alone.low) / 2
    turned = estimate_slope_difference(second, first, ALPHAS)
    assert (turned.low, turned.high) == pytest.approx((-result.high, -result.low))

    def by_hand(weights):
        return slope_statistic(first, ALPHAS)(weights) - slope_statistic(second, ALPHAS)(weights)

    expected = estimate(by_hand, 200)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))


def test_the_reduction_is_a_percentage_of_the_unscaled_rate():
    compliance = np.zeros((3, 10), dtype=bool)
    compliance[1, :8] = True  # OC(1) = 0.8
    compliance[0, :6] = True  # OC(0) = 0.6
    compliance[2, :10] = True
    result = estimate_reduction(compliance, [0, 1, 2], 0)
    assert result is not None
    assert result.value == pytest.approx(25)
    assert result.low < 25 < result.high
    more = estimate_reduction(compliance, [0, 1, 2], 2)
    assert more is not None
    assert more.value == pytest.approx(-25)
    itself = estimate_reduction(compliance, [0, 1, 2], 1)
    assert itself is not None
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)


def test_no_reduction_where_fewer_than_two_units_comply_unscaled():
    compliance = np.zeros((2, 12), dtype=bool)
    assert estimate_reduction(compliance, [0, 1], 0) is None
    compliance[1, :4] = True
    assert estimate_reduction(compliance, [0, 1], 0, np.arange(12) // 4) is None
    pairs = estimate_reduction(compliance, [0, 1], 0, np.arange(12) // 2)
    assert pairs is not None
    assert (pairs.value, pairs.low, pairs.high) == (100, 100, 100)


def test_an_alpha_matches_despite_its_rounding():
    compliance = trials(4)[:4]
    alphas = [0.1 * k for k in (3, 10, 11, 12)]  # 0.30000000000000004, …
    result = estimate_reduction(compliance, alphas, 0.3)
    assert result == estimate_reduction(compliance, alphas, 0.1 * 3)


@given(responses())
def test_r_squared_equals_scipys(data):
    response, alphas = data
    assume(np.ptp(response) > 0)
    assert r_squared(response, alphas) == pytest.approx(
        linregress(alphas, response).rvalue ** 2, abs=1e-9
    )


@given(responses())
def test_monotonicity_equals_scipys_and_turns_with_alpha(data):
    response, alphas = data
    assume(np.ptp(response) > 0)
    tau = monotonicity(response, alphas)
    assert tau == pytest.approx(kendalltau(response, alphas).statistic, abs=1e-12)
    assert monotonicity(response, -alphas) == pytest.approx(-tau, abs=1e-12)
    assert monotonicity(response**3, alphas) == pytest.approx(tau, abs=1e-12)


def test_tau_b_by_hand():
    """Of 6 pairs, 3 agree, 2 disagree and 1 is tied: (3 − 2) / √(6 · 5)."""
    assert monotonicity([0.1, 0.3, 0.3, 0.2], [0, 1, 2, 3]) == pytest.approx(1 / np.sqrt(30))
    assert monotonicity([0.1, 0.2, 0.3, 0.3], [0, 1, 2, 3]) == pytest.approx(5 / np.sqrt(30))
    assert monotonicity([0.1, 0.2, 0.3], [0, 1, 2]) == pytest.approx(1)


def test_constant_rates_have_no_response():
    nearly = [0.3, 0.1 + 0.2, 0.3]  # 0.30000000000000004
    for constant in ([0.5, 0.5, 0.5], nearly):
        assert r_squared(constant, [0, 1, 2]) == 0
        assert monotonicity(constant, [0, 1, 2]) == 0


def test_rates_that_differ_by_rounding_are_tied():
    tied = monotonicity([0.1 + 0.2, 0.3, 0.5], [0, 1, 2])
    assert tied == monotonicity([0.3, 0.3, 0.5], [0, 1, 2]) == pytest.approx(2 / np.sqrt(6))


def test_a_value_among_draws_by_hand():
    draws = [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert draw_p_value(5, draws) == pytest.approx(1 / 6)  # the smallest value
    assert draw_p_value(-5, draws) == pytest.approx(1 / 6)
    assert draw_p_value(1.5, draws) == pytest.approx(4 / 6)  # their mean is 0.25
    assert draw_p_value(-2, draws) == pytest.approx(3 / 6)
    assert draw_p_value(0, draws) == 1
    assert draw_p_value(0.1, [0.1] * 3) == 1
    assert draw_p_value(0.4, [0.0, 0.5, 0.1]) == 1  # as far from the mean as 0.1


@given(
    st.integers(-100, 100),
    st.lists(st.integers(-100, 100), min_size=1, max_size=30),
    st.integers(-1000, 1000),
)
def test_a_draw_p_value_sees_neither_sign_nor_origin_nor_rounding(value, draws, shift):
    p = draw_p_value(value, draws)
    assert 1 / (len(draws) + 1) <= p <= 1
    assert draw_p_value(-value, [-d for d in draws]) == p
    assert draw_p_value((value + shift) / 10, [(d + shift) / 10 for d in draws]) == p


def test_one_of_the_draws_reaches_p_005_about_once_in_twenty():
    draws = np.random.default_rng(0).standard_normal((2000, 100))
    result = [draw_p_value(row[0], row[1:]) for row in draws]
    assert np.mean(np.array(result) <= 0.05) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("compliance", "message"),
    [
        ([1, 0, 1], "give one row per α"),
        (np.zeros((2, 0)), "give one row per α"),
        ([[0, np.nan], [0, 1]], "between 0 and 1"),
        ([[0, 2], [0, 1]], "between 0 and 1"),
        ([[0, 1], [0, -1]], "between 0 and 1"),
    ],
)
def test_bad_trials_are_rejected(compliance, message):
    for rejected in (
        lambda: rate_statistic(compliance),
        lambda: estimate_rates(compliance),
        lambda: estimate_slope(compliance, [0, 1]),
        lambda: estimate_reduction(compliance, [0, 1], 0),
        lambda: estimate_slope_difference([[0, 1], [1, 1]], compliance, [0, 1]),
    ):
        with pytest.raises(HQError, match=message):
            rejected()


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([0], "one α per rate"),
        ([[0, 1]], "one α per rate"),
        ([1, 1], "finite and different"),
        ([0, np.nan], "finite and different"),
        ([0, np.inf], "finite and different"),
    ],
)
def test_bad_alphas_are_rejected(alphas, message):
    compliance = np.array([[0, 1], [1, 1]])
    for rejected in (
        lambda: estimate_slope(compliance, alphas),
        lambda: estimate_slope_difference(compliance, compliance, alphas),
        lambda: estimate_reduction(compliance, alphas, 1),
        lambda: r_squared([0.1, 0.2], alphas),
        lambda: monotonicity([0.1, 0.2], alphas),
    ):
        with pytest.raises(HQError, match=message):
            rejected()


def test_one_alpha_is_no_dose_response():
    with pytest.raises(HQError, match="at least two α"):
        estimate_slope(np.ones((1, 4)), [1])
    with pytest.raises(HQError, match="at least two α"):
        r_squared([0.5], [1])


def test_pairs_need_the_same_trials():
    with pytest.raises(HQError, match="cannot be paired"):
        slope_difference_statistic(np.ones((2, 3)), np.ones((2, 4)), [0, 1])


@pytest.mark.parametrize(("alphas", "alpha"), [([0, 2], 0), ([0, 1], 2), ([0, 1], np.nan)])
def test_a_reduction_needs_both_of_its_alphas(alphas, alpha):
    with pytest.raises(HQError, match="is not among the α measured"):
        estimate_reduction(np.ones((2, 4)), alphas, alpha)


@pytest.mark.parametrize("response", [[0.1, np.nan], [[0.1, 0.2]]])
def test_bad_rates_are_rejected(response):
    for rejected in (r_squared, monotonicity):
        with pytest.raises(HQError, match="one finite number per α"):
            rejected(response, [0, 1])


@pytest.mark.parametrize(
    ("value", "draws"), [(0.1, []), (0.1, [np.nan]), (np.nan, [0.1]), (0.1, [[0.1]])]
)
def test_bad_draws_are_rejected(value, draws):
    with pytest.raises(HQError, match="at least one draw"):
        draw_p_value(value, draws)


@given(tables())
def test_curvature_is_the_square_term_of_a_parabola(data):
    compliance, alphas = data
    assume(len(alphas) > 2 and compliance.shape[1] > 1)
    expected = np.polyfit(alphas, compliance.mean(axis=1), 2)[0]
    assert estimate_curvature(compliance, alphas).value == pytest.approx(expected, abs=1e-9)


def test_a_line_has_no_curvature_and_a_bend_has():
    line = estimate_curvature(trials(1, n=200, slope=0.1), ALPHAS)
    assert line.low < 0 < line.high
    bent = np.random.default_rng(2).random(200) < np.array([0.2, 0.6, 0.7, 0.7, 0.7])[:, None]
    assert estimate_curvature(bent, ALPHAS).high < 0
    with pytest.raises(HQError, match="three or more"):
        estimate_curvature(bent[:2], ALPHAS[:2])


def curve(rates: list[float], n: int, seed: int) -> np.ndarray:
    """Trials with these rates, each with one threshold for all α."""
    return np.random.default_rng(seed).random(n) < np.array(rates)[:, None]


def test_a_curve_that_rises_and_falls_is_not_monotone():
    hump, doses = [0.33, 0.60, 0.08], np.array([0.0, 1.0, 3.0])
    assert not is_monotone(curve(hump, 200, 0), doses)
    order = np.array([2, 0, 1])
    assert not is_monotone(curve(hump, 200, 0)[order], doses[order])
    assert is_monotone(curve(hump, 8, 0), doses)  # too few trials to show it
    for rates in ([0.3, 0.3, 0.3], [0.3, 0.5, 0.8], [0.8, 0.8, 0.1]):
        assert is_monotone(curve(rates, 200, 0), doses)


def test_flat_and_monotone_curves_are_rarely_called_not_monotone():
    rng = np.random.default_rng(0)
    rates = np.array([0.5, 0.5, 0.5, 0.55, 0.55, 0.55])
    alphas = np.array([0, 0.5, 1, 1.5, 2, 3])
    errors = sum(not is_monotone(rng.random((6, 60)) < rates[:, None], alphas) for _ in range(200))
    assert errors <= 5


def test_the_excess_has_the_variance_of_units_and_of_draws():
    alphas, rng = np.array([0.0, 1.0, 3.0]), np.random.default_rng(0)
    h = rng.random((3, 80)) < np.array([0.2, 0.4, 0.8])[:, None]
    draws = rng.random((20, 3, 80)) < 0.4
    result = estimate_slope_excess(h, draws, alphas)
    slopes = np.array([slope(draw, alphas) for draw in draws])
    assert result.value == pytest.approx(slope(h, alphas) - slopes.mean())
    units = estimate_slope_difference(h.astype(float), draws.mean(axis=0), alphas)
    assert units.se is not None
    assert result.se is not None
    assert result.se**2 == pytest.approx(units.se**2 + slopes.var(ddof=1) / 20)
    assert result.low > 0
    one = estimate_slope_excess(h, np.stack([draws[0]] * 20), alphas)  # draws that agree
    assert one.se == pytest.approx(estimate_slope_difference(h, draws[0], alphas).se)
    with pytest.raises(HQError, match="takes two or more"):
        estimate_slope_excess(h, draws[:1], alphas)


def test_the_excess_covers_the_difference_from_the_mean_of_all_draws():
    """Draws differ in their true slopes; trials in their thresholds, which all draws share."""
    alphas, rng = np.array([0.0, 1.0, 3.0]), np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        threshold = rng.random((1, 1, 60))
        true = np.append(0.1, 0.05 + 0.03 * rng.standard_normal(10))
        rates = 0.3 + true[:, None, None] * alphas[None, :, None]
        noisy = threshold + 0.1 * rng.standard_normal((11, 3, 60)) < rates
        result = estimate_slope_excess(noisy[0], noisy[1:], alphas)
        covered += result.low <= 0.05 <= result.high
    assert covered >= 184  # 92%, as noise at the ends also shrinks slopes
