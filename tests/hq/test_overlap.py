from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hq.errors import HQError
from hq.probe.overlap import (
    consistency,
    expected_jaccard,
    jaccard,
    mean_jaccard,
    overlap_p_value,
)

indices = st.lists(st.integers(0, 30), min_size=1).map(np.array)


@given(indices, indices)
def test_jaccard_is_that_of_python_sets(a, b):
    x, y = set(a.tolist()), set(b.tolist())
    assert jaccard(a, b) == len(x & y) / len(x | y)
    assert jaccard(a, b) == jaccard(b, a)
    assert jaccard(a, a) == 1


def test_two_empty_sets_have_no_overlap_to_speak_of():
    with pytest.raises(HQError, match="empty"):
        jaccard(np.array([], dtype=np.int64), np.array([], dtype=np.int64))


def test_the_expectation_is_what_random_draws_give():
    rng = np.random.default_rng(0)
    drawn = [
        jaccard(rng.choice(30, 8, replace=False), rng.choice(30, 12, replace=False))
        for _ in range(4000)
    ]
    assert expected_jaccard(8, 12, 30) == pytest.approx(np.mean(drawn), abs=0.005)


def test_sets_that_must_overlap():
    assert expected_jaccard(10, 10, 10) == pytest.approx(1)
    assert expected_jaccard(3, 10, 10) == pytest.approx(0.3)
    assert overlap_p_value(3, 3, 10, 10) == pytest.approx(1)


def test_p_value_of_one_shared_neuron_by_hand():
    # Of 2 out of 4, the other 2 miss both with probability C(2,2) / C(4,2) = 1/6.
    assert overlap_p_value(1, 2, 2, 4) == pytest.approx(5 / 6)
    assert overlap_p_value(0, 2, 2, 4) == pytest.approx(1)
    assert overlap_p_value(2, 2, 2, 4) == pytest.approx(1 / 6)


@pytest.mark.parametrize("sizes", [(0, 3, 10), (3, 11, 10)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(HQError, match="cannot be drawn"):
        expected_jaccard(*sizes)


def kuncheva(a, b, p):
    """(r·p − k²) ÷ (k·(p − k)) of two sets of k neurons with r in common (Kuncheva 2007)."""
    k, r = len(a), len(np.intersect1d(a, b))
    return (r * p - k**2) / (k * (p - k))


def test_consistency_of_sets_of_one_size_is_the_mean_index_of_kuncheva():
    rng = np.random.default_rng(0)
    sets = [rng.choice(40, 7, replace=False) for _ in range(5)]
    expected = np.mean([kuncheva(a, b, 40) for a, b in combinations(sets, 2)])
    assert consistency(sets, 40) == pytest.approx(expected)
    # By hand: 5 of 10 in common out of 100 is (5·100 − 100) ÷ (10·90).
    assert consistency([np.arange(10), np.arange(5, 15)], 100) == pytest.approx(400 / 900)


def test_consistency_of_sets_of_several_sizes_by_hand():
    # π = (1, ½, 0, 0), s² = 2·π·(1 − π) = (0, ½, 0, 0), k̄ = 1.5: 1 − (½/4) ÷ (1.5/4 · 2.5/4).
    assert consistency([np.array([0, 1]), np.array([0])], 4) == pytest.approx(1 - 0.125 / 0.234375)


def test_consistency_is_one_for_equal_sets_and_zero_by_chance():
    rng = np.random.default_rng(0)
    assert consistency([np.arange(7)] * 3, 40) == pytest.approx(1)
    random = [
        consistency([rng.choice(60, 9, replace=False) for _ in range(3)], 60) for _ in range(3000)
    ]
    assert np.mean(random) == pytest.approx(0, abs=0.01)
    assert consistency([np.array([0, 1]), np.array([2, 3])], 4) == pytest.approx(-1)


@pytest.mark.parametrize("sets", [[], [np.arange(3)], [np.arange(0)] * 2, [np.arange(5)] * 2])
def test_sets_without_a_consistency(sets):
    with pytest.raises(HQError, match="have no consistency"):
        consistency(sets, 5)


def test_the_mean_jaccard_is_over_all_pairs():
    sets = [np.array([0, 1]), np.array([1, 2, 3]), np.array([5])]
    expected = [expected_jaccard(a, b, 9) for a, b in ((2, 3), (2, 1), (3, 1))]
    assert mean_jaccard(sets, 9) == pytest.approx((0.25 / 3, np.mean(expected)))
    with pytest.raises(HQError, match="two sets"):
        mean_jaccard(sets[:1], 9)
