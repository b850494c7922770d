import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from hq.errors import HQError
from hq.neurons.features import standardise
from hq.neurons.space import NeuronSpace


def test_standardised_as_scikit_learn_does():
    X = np.random.default_rng(0).lognormal(-7, 1, (50, 30)).astype(np.float32)
    found = standardise(X)
    np.testing.assert_allclose(
        found.Z, StandardScaler().fit_transform(X.astype(np.float64)), atol=1e-5
    )
    assert found.Z.dtype == np.float32
    assert found.Z.flags.f_contiguous


def test_blocks_and_rows_make_no_difference(monkeypatch):
    X = np.random.default_rng(0).random((20, 13), dtype=np.float32)
    rows = np.array([1, 4, 5, 19])
    whole = standardise(X[rows])
    monkeypatch.setattr("hq.neurons.features._BLOCK", 5)
    for one, other in zip(whole, standardise(X, rows=rows), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 3.3e4 / 7])
def test_a_constant_column_is_zero(value):
    X = np.random.default_rng(0).random((1601, 3))  # in float64, where the mean is rounded
    X[:, 1] = value
    found = standardise(X)
    assert (found.Z[:, 1] == 0).all()
    assert found.scale[1] == 1


@pytest.mark.parametrize("value", [1e-30, 1.0, 3e4])
def test_the_smallest_float32_step_is_no_constant(value):
    X = np.full((5000, 1), value, dtype=np.float32)
    X[17] = np.nextafter(X[17], np.float32(np.inf))
    Z = standardise(X).Z
    assert Z.std() == pytest.approx(1, rel=1e-3)
    assert Z.argmax() == 17


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_placed(bad):
    X = np.ones((4, 12), dtype=np.float32)
    X[2, 7] = X[3, 1] = bad
    with pytest.raises(HQError, match=r"2 feature values .* row 2 at neuron \(1, 2\)"):
        standardise(X, space=NeuronSpace.of_widths([5, 7]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_matrix_is_refused(shape):
    with pytest.raises(HQError, match="empty"):
        standardise(np.zeros(shape, dtype=np.float32))
