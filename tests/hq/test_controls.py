import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hq.errors import HQError
from hq.neurons.space import NeuronSpace
from hq.probe.controls import (
    fit_draws,
    magnitude_ratio,
    matched_neurons,
    outliers,
    random_neurons,
    read_control,
    ridge_probe,
)
from hq.stats.auroc import auroc

D_FF, LAYERS = 200, 3


def layers(magnitudes: np.ndarray, d_ff: int) -> NeuronSpace:
    return NeuronSpace.rectangular(len(magnitudes) // d_ff, d_ff)


@pytest.fixture
def magnitudes() -> np.ndarray:
    """Contributions that grow from layer to layer, with two super-neurons in the last."""
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.5, (LAYERS, D_FF)) * np.array([[1.0], [3.0], [9.0]])
    values[2, [10, 20]] = 1e9
    return values.ravel()


@given(st.integers(1, 10), st.integers(1, 5), st.integers(0, 99))
def test_random_draws_are_distinct_and_allowed(k, draws, seed):
    drawn = random_neurons(k, 30, draws, seed, exclude=range(0, 30, 3))
    assert drawn.shape == (draws, k)
    assert all(len(set(row)) == k for row in drawn.tolist())
    assert (drawn % 3 != 0).all()
    np.testing.assert_array_equal(drawn, random_neurons(k, 30, draws, seed, range(0, 30, 3)))


def test_random_draws_need_enough_neurons():
    with pytest.raises(HQError, match="Only 2 neurons"):
        random_neurons(3, 5, 1, 0, exclude=[0, 1, 2])


def test_super_neurons_are_outliers(magnitudes):
    assert np.flatnonzero(outliers(magnitudes)).tolist() == [410, 420]
    assert not outliers(np.zeros(5)).any()
    assert np.flatnonzero(outliers(np.r_[magnitudes, 0.0])).tolist() == [410, 420]


def test_matched_neurons_share_layer_and_magnitude(magnitudes):
    chosen = np.array([5, 6, 250, 555])
    drawn = matched_neurons(chosen, magnitudes, layers(magnitudes, D_FF), draws=50, seed=0)
    assert (drawn // D_FF == chosen // D_FF).all()
    assert not np.isin(drawn, chosen).any()
    assert all(len(set(row)) == len(chosen) for row in drawn.tolist())
    assert np.abs(np.log(magnitudes[drawn] / magnitudes[chosen])).max() <= 0.2
    assert len(np.unique(drawn[:, 0])) > 10
    assert magnitude_ratio(drawn, chosen, magnitudes) == pytest.approx(1, abs=0.05)


def test_where_none_is_near_the_nearest_are_taken():
    """The top of a layer: all others lie below it, and most of them far below."""
    magnitudes = np.geomspace(1e-3, 1.0, 200)
    top, below = np.array([199]), magnitudes[-6:-1]
    drawn = matched_neurons(
        top, magnitudes, layers(magnitudes, 200), draws=100, seed=0, caliper=0.01
    )
    assert set(drawn.ravel().tolist()) == set(range(194, 199))
    ratio = magnitude_ratio(drawn, top, magnitudes)
    assert below.min() < ratio < below.max() < 1
    assert magnitude_ratio(top, top, magnitudes) == 1


def test_magnitude_counts_and_not_rank():
    """The 20 next in rank are 100 times smaller; the ones of its size are few, and all above."""
    magnitudes = np.r_[np.geomspace(0.01, 0.02, 20), 2.0, 2.02, 2.04, 2.06, 2.08, 2.1, 9.0]
    drawn = matched_neurons(np.array([20]), magnitudes, layers(magnitudes, 27), draws=100, seed=0)
    assert set(drawn.ravel().tolist()) == {21, 22, 23, 24, 25}


def test_neurons_that_compete_for_their_matches_share_them():
    """Seven alike with seven matches between them: each draw uses every match once."""
    magnitudes = np.r_[np.full(14, 1.0), np.geomspace(1e-3, 1e-2, 10)]
    drawn = matched_neurons(np.arange(7), magnitudes, layers(magnitudes, 24), draws=20, seed=0)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(7, 14), (20, 1)))


def test_a_silent_neuron_is_no_match_for_one_that_speaks():
    magnitudes = np.r_[np.zeros(10), np.geomspace(0.1, 0.2, 6)]
    drawn = matched_neurons(np.array([10]), magnitudes, layers(magnitudes, 16), draws=50, seed=0)
    assert drawn.min() > 10
    silent = matched_neurons(np.array([0]), magnitudes, layers(magnitudes, 16), draws=50, seed=0)
    assert silent.max() < 10


def test_super_neurons_match_each_other_only(magnitudes):
    ordinary = np.flatnonzero(np.arange(600) // D_FF == 2)
    ordinary = ordinary[np.argsort(magnitudes[ordinary])][-3:-2]  # the largest that is no outlier
    assert not np.isin(
        matched_neurons(ordinary, magnitudes, layers(magnitudes, D_FF), 50, 0), [410, 420]
    ).any()
    drawn = matched_neurons(np.array([410]), magnitudes, layers(magnitudes, D_FF), 50, 0)
    assert (drawn == 420).all()


def test_a_layer_with_too_few_left_is_refused():
    with pytest.raises(HQError, match="too few neurons"):
        matched_neurons(
            np.array([0, 1, 2]), np.arange(1.0, 5.0), NeuronSpace.rectangular(1, 4), draws=1, seed=0
        )


@pytest.fixture
def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    X = rng.standard_normal((400, 50)).astype(np.float32)
    X[:, :5] += y[:, None]
    return X[:200], y[:200], X[200:], y[200:]


def test_controls_tell_signal_from_none(split):
    X_train, y_train, *test = split
    good, none = (
        read_control(fit_draws(X_train, y_train, draws), draws, *test)
        for draws in (np.array([[0, 1], [2, 3]]), random_neurons(2, 50, 30, 0, exclude=range(5)))
    )
    assert good.estimate.value > 0.8
    assert abs(none.estimate.value - 0.5) < 0.05
    assert none.per_draw.shape == (30,)
    assert none.estimate.value == pytest.approx(none.per_draw.mean())
    assert none.per_draw.min() <= none.estimate.low < none.estimate.high <= none.per_draw.max()
    assert good.decisions.shape == (2, 200)
    assert [auroc(row, split[3]) for row in good.decisions] == pytest.approx(good.per_draw)


def test_a_probe_reads_one_feature(split):
    X_train, y_train, X_test, y_test = split
    decisions = ridge_probe(X_train[:, :1], y_train).decision_function(X_test[:, :1])
    assert 0.65 < auroc(decisions, y_test) < 0.85


def test_a_relation_that_says_nothing_reaches_one_half():
    """One column a relation, classes balanced within each."""
    relation = np.eye(4)[np.repeat(np.arange(4), 20)]
    y = np.tile([0, 1], 40)
    decisions = ridge_probe(relation, y).decision_function(relation)
    assert auroc(decisions, y) == pytest.approx(0.5)


def test_a_probe_needs_both_classes(split):
    X_train, y_train, _, _ = split
    with pytest.raises(HQError, match="one class"):
        ridge_probe(X_train, np.ones_like(y_train))
