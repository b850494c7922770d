"""Fidelity: each measure against a naive computation, its intervals and undefined values."""

import numpy as np
import pytest

from hq.errors import HQError
from hq.neurons.space import NeuronSpace
from hq.probe.fidelity import correlation, over_draws, over_questions, rank_change, relative_error

N, K = 60, 7
ONE = np.ones((1, N))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.lognormal(0, 1, (N, K)).astype(np.float32)
    return a, (a * rng.lognormal(0, 0.3, (N, K))).astype(np.float32)


def test_correlation_is_numpys(pair):
    a, b = pair
    expected = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(K)]
    np.testing.assert_allclose(correlation(a, b)(ONE)[0], expected, rtol=1e-6)


def test_weights_are_as_good_as_copies(pair):
    a, b = pair
    weights = np.random.default_rng(1).integers(0, 4, N)
    copies = np.repeat(np.arange(N), weights)
    for measure in (correlation, relative_error):
        np.testing.assert_allclose(
            measure(a, b)(weights[None].astype(float))[0],
            measure(a[copies], b[copies])(np.ones((1, len(copies))))[0],
            rtol=1e-6,
        )


def test_relative_error_is_change_over_reference(pair):
    a, b = pair
    expected = np.abs(b.astype(float) - a).sum(axis=0) / a.sum(axis=0, dtype=float)
    np.testing.assert_allclose(relative_error(a, b)(ONE)[0], expected, rtol=1e-6)


def test_rank_change_counts_places_within_the_layer():
    a = np.array([[1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 7.0, 6.0]])
    b = np.array([[4.0, 2.0, 3.0, 1.0, 9.0, 8.0, 7.0, 6.0]])
    measure = rank_change(a, b, np.array([7, 0, 1]), NeuronSpace.rectangular(2, 4))
    np.testing.assert_allclose(measure(np.ones((1, 1)))[0], [0, 3 / 4, 0])


def test_a_group_is_the_mean_of_its_neurons_and_leaves_out_groups_of_questions(pair):
    a, b = pair
    measure = relative_error(a, b)
    alone = over_questions(measure, N, "relative error")
    assert alone.value == pytest.approx(measure(ONE).mean())
    copied = over_questions(
        relative_error(np.repeat(a, 5, axis=0), np.repeat(b, 5, axis=0)),
        5 * N,
        "relative error",
        groups=np.repeat(np.arange(N), 5),
    )
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.n == N


def test_draws_have_the_spread_of_their_means(pair):
    measure = relative_error(*pair)
    draws = np.array([[0, 1], [2, 3], [4, 5], [5, 6]])
    result = over_draws(measure, N, "relative error", draws)
    each = measure(ONE)[0][draws].mean(axis=1)
    assert result.value == pytest.approx(each.mean())
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(each, [0.025, 0.975])))
    assert (result.n, result.se) == (4, None)


def test_neurons_without_a_value_are_left_out(pair):
    a, b = (v.copy() for v in pair)
    a[:, 0], b[:, 1] = 0.125, 0  # constant, silent
    found = correlation(a, b)(ONE)[0]
    assert np.isnan(found).tolist() == [True, True, False, False, False, False, False]
    group = over_questions(correlation(a, b), N, "correlation")
    assert group.value == pytest.approx(found[2:].mean())


def test_a_neuron_that_varies_in_one_question_has_no_correlation_without_it():
    a = np.full((20, 1), 1e-4, dtype=np.float32)
    a[0] = 0.3
    weights = np.ones((2, 20))
    weights[1, 0] = 0
    found = correlation(a, 2 * a)(weights)
    assert found[0, 0] == pytest.approx(1)
    assert np.isnan(found[1, 0])


def test_what_cannot_be_computed_is_named():
    constant = np.ones((10, 3))
    with pytest.raises(HQError, match="The correlation is undefined for these 10 rows"):
        over_questions(correlation(constant, constant), 10, "correlation")
    silent = relative_error(np.zeros((10, 3)), constant)
    with pytest.raises(HQError, match="The relative error is undefined for a draw"):
        over_draws(silent, 10, "relative error", np.array([[0, 1]]))
