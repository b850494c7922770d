"""Neurons on the fold that did not select them."""

import numpy as np
import pytest

from hq.probe.held_out import mean_over_folds
from hq.stats.auroc import auroc, auroc_statistic
from hq.stats.columns import column_ranks, ranked_aurocs


def test_selection_raises_aurocs_only_where_it_looked():
    rng = np.random.default_rng(0)
    X, y, folds = rng.random((300, 2000)), np.arange(300) % 2, np.arange(300) // 2 % 3
    rows = [np.flatnonzero(folds == fold) for fold in range(3)]
    outside = [np.flatnonzero(folds != fold) for fold in range(3)]
    areas = [ranked_aurocs(column_ranks(X[of]), y[None, of])[0] for of in outside]
    chosen = [np.argsort(of_fold)[-10:] for of_fold in areas]

    def area(neuron, some):
        return auroc_statistic(X[some, neuron], y[some])

    everyone = np.ones((1, 300))
    selected_on = mean_over_folds(chosen, outside, area)(everyone)[0]
    held_out = mean_over_folds(chosen, rows, area)(everyone)[0]
    assert selected_on > 0.6
    assert held_out == pytest.approx(0.5, abs=0.04)
    expected = [
        auroc(X[of, j], y[of]) for of, flats in zip(rows, chosen, strict=True) for j in flats
    ]
    assert held_out == pytest.approx(np.mean(expected))
