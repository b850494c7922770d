"""Mutual information against scikit-learn, closed forms, and simulated independence."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from hq.stats.information import (
    column_corrections,
    column_information,
    information_statistic,
    miller_madow,
)


@pytest.fixture
def indicators():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (3, 150))
    high = rng.random((20, 150)) < 0.3
    high[0], high[1], high[2] = y[0] == 1, y[0] == 0, False
    return high, y


def test_the_plug_in_estimate_is_that_of_scikit_learn(indicators):
    high, labels = indicators
    expected = [[mutual_info_score(h, y) / np.log(2) for h in high] for y in labels]
    assert column_information(high, labels) == pytest.approx(np.array(expected), abs=1e-12)
    everyone = np.ones((1, labels.shape[1]))
    one = [[information_statistic(h, y)(everyone)[0] for h in high] for y in labels]
    assert np.array(one) == pytest.approx(np.array(expected), abs=1e-12)


def test_an_indicator_of_the_label_has_its_entropy(indicators):
    high, labels = indicators
    share = labels[0].mean()
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert column_information(high[:3], labels[:1])[0] == pytest.approx([entropy, entropy, 0])


def test_weights_are_repeated_rows(indicators):
    high, labels = indicators
    weights = np.random.default_rng(1).integers(0, 4, (5, labels.shape[1])).astype(float)
    statistic = information_statistic(high[5], labels[0])
    for row, value in zip(weights, statistic(weights), strict=True):
        rows = np.repeat(np.arange(len(row)), row.astype(int))
        expected = mutual_info_score(high[5][rows], labels[0][rows]) / np.log(2)
        assert value == pytest.approx(expected, abs=1e-12)


def test_corrections_are_those_of_miller(indicators):
    high, labels = indicators
    corrections = column_corrections(high, labels)
    n = labels.shape[1]
    assert corrections[1, 5] == pytest.approx(-1 / (2 * n * np.log(2)))  # all four cells occur
    assert corrections[0, 0] == pytest.approx(1 / (2 * n * np.log(2)))  # two of them
    assert corrections[0, 2] == pytest.approx(0)  # never high
    expected = [[miller_madow(h, y) for h in high] for y in labels]
    assert corrections == pytest.approx(np.array(expected))


def test_the_correction_removes_the_bias_of_independent_rows():
    rng = np.random.default_rng(0)
    high, labels = rng.random((2000, 60)) < 0.5, rng.integers(0, 2, (40, 60))
    plug_in = column_information(high, labels)
    bias = 1 / (2 * 60 * np.log(2))
    assert plug_in.mean() == pytest.approx(bias, rel=0.05)
    assert abs((plug_in + column_corrections(high, labels)).mean()) < 0.05 * bias
