import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from hq.agreement import pearson_columns, rank_within_layer, relative_error, spearman_columns
from hq.errors import HQError


@pytest.fixture
def readings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.random((20, 3), dtype=np.float32)
    return a, (a + 0.3 * rng.random((20, 3))).astype(np.float32)


def test_columns_correlate_as_scipy_says(readings):
    a, b = readings
    for j in range(3):
        pearson = pearsonr(a[:, j].astype(float), b[:, j].astype(float)).statistic
        assert pearson_columns(a, b)[j] == pytest.approx(pearson)
        assert spearman_columns(a, b)[j] == pytest.approx(spearmanr(a[:, j], b[:, j]).statistic)


def test_a_constant_column_has_no_correlation_and_no_warning(readings):
    a, b = readings
    a[:, 1] = 0.5
    assert np.isnan(pearson_columns(a, b)).tolist() == [False, True, False]
    assert np.isnan(spearman_columns(a, b)).tolist() == [False, True, False]


def test_spearman_sees_ranks_only(readings):
    a, _ = readings
    np.testing.assert_allclose(spearman_columns(a, np.exp(5 * a)), 1)


def test_relative_error_by_hand():
    reference = np.array([[3.0, 0.0], [4.0, 0.0]])
    found = relative_error(np.array([[3.0, 1.0], [4.5, 0.0]]), reference)
    assert found[0] == pytest.approx(0.1)
    assert np.isnan(found[1])


def test_ranks_start_with_the_largest_and_stay_in_their_layer():
    X = np.array([[0.1, 0.3, 0.2, 9.0, 7.0, 7.0]])
    ranks = rank_within_layer(X.reshape(1, 2, 3))
    assert ranks.tolist() == [[[3, 1, 2], [1, 2.5, 2.5]]]


@pytest.mark.parametrize("shape", [(20, 2), (19, 3)])
def test_readings_must_be_paired(readings, shape):
    with pytest.raises(HQError, match="cannot be compared"):
        relative_error(readings[0], np.zeros(shape))


def test_one_sample_has_no_correlation():
    with pytest.raises(HQError, match="at least two"):
        pearson_columns(np.zeros((1, 3)), np.zeros((1, 3)))
