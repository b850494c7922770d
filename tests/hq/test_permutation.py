"""Labels flipped by unit: whole units, and tests that hold their level."""

import numpy as np
import pytest

from hq.errors import HQError
from hq.stats.columns import column_ranks, ranked_aurocs
from hq.stats.permutation import flipped_labels, maximum_p, rank_p


def test_units_are_flipped_as_a_whole():
    rng = np.random.default_rng(0)
    units, y = rng.integers(0, 30, 200), rng.integers(0, 2, 200)
    flips = flipped_labels(y, units, 400, 1) != y
    for unit in np.unique(units):
        of_unit = flips[:, units == unit]
        assert (of_unit == of_unit[:, :1]).all()
    assert flips.mean(axis=0) == pytest.approx(np.full(200, 0.5), abs=0.12)
    assert (flipped_labels(y, units, 400, 1) == flipped_labels(y, units, 400, 1)).all()


def test_unbalanced_labels_are_an_error():
    with pytest.raises(HQError, match="25% of the labels are 1"):
        flipped_labels(np.arange(80) % 4 // 3, None, 10, 0)


def test_p_values_hold_their_level_where_rows_depend_on_each_other():
    """Values and labels are unrelated, but both depend on the unit, with large units among them."""
    rng = np.random.default_rng(0)
    sizes = np.r_[[30] * 4, [10] * 8, [3] * 40]
    units = np.repeat(np.arange(len(sizes)), sizes)
    by_flips, by_rows = [], []
    for seed in range(30):
        inclination = rng.standard_normal(len(sizes))[units]
        y = (inclination + rng.standard_normal(len(units)) > np.median(inclination)).astype(int)
        if abs(y.mean() - 0.5) > 0.1:
            continue
        shared = rng.standard_normal((len(sizes), 20))[units]
        ranks = column_ranks(shared + rng.standard_normal(shared.shape))
        observed = ranked_aurocs(ranks, y[None])[0]
        permuted = np.stack([rng.permutation(y) for _ in range(199)])
        for p_values, labels in (
            (by_flips, flipped_labels(y, units, 199, seed)),
            (by_rows, permuted),
        ):
            p_values.append(rank_p(observed, ranked_aurocs(ranks, labels)))
    level = np.mean(np.concatenate(by_flips) <= 0.05)
    assert 0.025 < level < 0.075
    assert np.mean(np.concatenate(by_rows) <= 0.05) > 0.12  # units are broken up


def test_ranks_among_draws():
    null = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.6]])
    assert rank_p(np.array([0.25, 0.7]), null).tolist() == [0.5, 0.25]


def test_family_wise_p_values_use_the_largest_of_each_draw():
    null = np.random.default_rng(0).random((200, 50))
    observed = np.array([0.2, 0.985, 1.1])
    expected = [(1 + (null.max(axis=1) >= value).sum()) / 201 for value in observed]
    assert maximum_p(observed, null.max(axis=1)) == pytest.approx(expected)
    assert expected[2] == pytest.approx(1 / 201)
