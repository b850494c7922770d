"""AUROCs of many columns equal those of one column at a time, and scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hq.errors import HQError
from hq.stats.auroc import estimate_auroc
from hq.stats.columns import (
    column_blocks,
    column_ranks,
    estimate_column_aurocs,
    ranked_aurocs,
)


@pytest.fixture
def table():
    """Values with ties in some columns, labels, and units of different sizes."""
    rng = np.random.default_rng(0)
    n = 240
    y = rng.integers(0, 2, n)
    X = rng.lognormal(size=(n, 12)).astype(np.float32)
    X[:, 1] = np.round(X[:, 1], 1)
    X[:, 2] = 0  # a missing neuron
    X[:, 3] = y
    X[:, 4] = -y
    X[:, 5] += y
    units = rng.choice(40, n, p=np.arange(1, 41) / np.arange(1, 41).sum())
    return X, y, units


@pytest.mark.parametrize("grouped", [True, False])
def test_intervals_are_those_of_single_columns(table, grouped):
    X, y, units = table
    groups = units if grouped else None
    columns = estimate_column_aurocs(X, y, groups)
    for j in range(X.shape[1]):
        one = estimate_auroc(X[:, j], y, groups)
        of_column = [values[j] for values in columns]
        assert of_column == pytest.approx([one.value, one.low, one.high], rel=1e-9)


def test_units_need_not_be_consecutive_rows(table):
    X, y, units = table
    order = np.random.default_rng(1).permutation(len(y))
    first, again = (estimate_column_aurocs(*a) for a in (table, (X[order], y[order], units[order])))
    for one, other in zip(first, again, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_many_labelings_at_once(table):
    X, y, _ = table
    labels = np.stack([y, 1 - y, np.random.default_rng(2).integers(0, 2, len(y))])
    areas = ranked_aurocs(column_ranks(X), labels)
    expected = [[roc_auc_score(row, X[:, j]) for j in range(X.shape[1])] for row in labels]
    assert areas == pytest.approx(np.array(expected))


def test_sums_of_many_ranks_are_exact():
    """Twice the rank sum of 6,000 rows exceeds float32's whole numbers."""
    rng = np.random.default_rng(0)
    X, y = rng.random((6000, 2)).astype(np.float32), rng.integers(0, 2, 6000)
    areas = ranked_aurocs(column_ranks(X), y[None])[0]
    assert areas == pytest.approx([roc_auc_score(y, X[:, j]) for j in range(2)], abs=1e-12)


def test_one_class_has_no_auroc(table):
    X, y, _ = table
    assert np.isnan(ranked_aurocs(column_ranks(X), np.ones((1, len(y)), dtype=int))).all()
    with pytest.raises(HQError, match="one class"):
        estimate_column_aurocs(X, np.ones(len(y), dtype=int))


def test_nan_is_an_error(table):
    X, _, _ = table
    X[3, 7] = np.nan
    with pytest.raises(HQError, match="NaN"):
        column_ranks(X)


def test_blocks_cover_all_columns():
    covered = [j for block in column_blocks(10, 4) for j in range(10)[block]]
    assert covered == list(range(10))
