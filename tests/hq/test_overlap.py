import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hq.errors import HQError
from hq.probe.overlap import expected_jaccard, jaccard, overlap_p_value

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
