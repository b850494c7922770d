import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from hq.errors import HQError
from hq.stats.intervals import clopper_pearson
from hq.stats.thresholds import estimate_f1, match_quantile, youden_threshold

finite = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
scores = st.lists(finite, min_size=1, max_size=30)


@given(scores, finite)
def test_equal_scores_keep_the_threshold(s, threshold):
    assert match_quantile(threshold, s, s) == pytest.approx(threshold, abs=1e-9)


@given(scores, st.floats(0, 1), st.floats(0.1, 10), finite)
def test_a_linear_drift_is_undone(s, place, slope, shift):
    threshold = min(s) + place * (max(s) - min(s))
    drifted = slope * np.array(s) + shift
    expected = slope * threshold + shift
    assert match_quantile(threshold, s, drifted) == pytest.approx(expected, abs=1e-6)


def test_as_many_responses_are_called_as_before():
    rng = np.random.default_rng(0)
    before, after = rng.standard_normal(500), np.exp(rng.standard_normal(700))
    threshold = match_quantile(0.3, before, after)
    assert (after >= threshold).mean() == pytest.approx((before >= 0.3).mean(), abs=0.005)


def test_beyond_the_range_nothing_flips():
    assert match_quantile(5.0, [0.0, 1.0], [10.0, 20.0]) == pytest.approx(24.0)
    assert match_quantile(-5.0, [0.0, 1.0], [10.0, 20.0]) == pytest.approx(5.0)


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf, 1.0]])
def test_quantiles_need_finite_scores(bad):
    with pytest.raises(HQError, match="finite"):
        match_quantile(0.0, [1.0, 2.0], bad)


def test_youden_separates_midway():
    assert youden_threshold([0.0, 1.0, 3.0, 4.0], [0, 0, 1, 1]) == pytest.approx(2.0)


def test_youden_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 80)
    s = rng.standard_normal(80) + labels
    chosen = balanced_accuracy_score(labels, s >= youden_threshold(s, labels))
    assert chosen == pytest.approx(max(balanced_accuracy_score(labels, s >= t) for t in s))


def test_youden_stays_finite_for_useless_scores():
    assert np.isfinite(youden_threshold([1.0, 1.0], [0, 1]))
    assert np.isfinite(youden_threshold([2.0, 1.0], [0, 1]))


def test_youden_needs_both_classes():
    with pytest.raises(HQError, match="one class"):
        youden_threshold([1.0, 2.0], [1, 1])


@given(st.integers(0, 2**32 - 1))
def test_f1_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels, s = rng.integers(0, 2, 30), rng.standard_normal(30)
    labels[:2] = 1
    result = estimate_f1(s, labels, 0.2)
    assert result.value == pytest.approx(f1_score(labels, s >= 0.2, zero_division=0.0))
    assert 0 <= result.low <= result.value <= result.high <= 1


def test_f1_leaves_out_whole_groups():
    rng = np.random.default_rng(0)
    labels, s = rng.integers(0, 2, 30), rng.standard_normal(30)
    alone = estimate_f1(s, labels, 0.2)
    copied = estimate_f1(np.repeat(s, 4), np.repeat(labels, 4), 0.2, np.repeat(np.arange(30), 4))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))


def test_f1_with_a_threshold_per_row():
    rng = np.random.default_rng(1)
    labels, s, fold = rng.integers(0, 2, 60), rng.standard_normal(60), np.arange(60) % 2
    shifted = estimate_f1(s + 5 * fold, labels, 0.2 + 5 * fold)
    assert shifted == estimate_f1(s, labels, 0.2)


def test_f1_of_0_and_1_has_the_interval_of_the_share_of_hits():
    """F1 = 2J / (1 + J), where J is hits ÷ (hits + misses + false alarms)."""
    labels = np.repeat([0, 1], [6, 4])
    nothing = estimate_f1(np.zeros(10), labels, 1.0)
    high = clopper_pearson(0, 4)[1]
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(2 * high / (1 + high))
    perfect = estimate_f1(labels, labels, 0.5)
    low = clopper_pearson(4, 4)[0]
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(2 * low / (1 + low))
