"""Changes of weights by neuron, their ranks and tests, and scores by fits that saw nothing related."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.stats import zscore

from hq.errors import HQError
from hq.models.ffn_weights import FFN
from hq.probe.origin import ChangeScale, neuron_changes, normalised_ranks, part_names, rank_test
from hq.probe.unseen import fit_without, unseen_scores

D, D_FF = 8, 20


def ffn(seed: int, gated: bool = True) -> FFN:
    drawn = torch.randn(3, D_FF, D, generator=torch.Generator().manual_seed(seed))
    return FFN(drawn[0] if gated else None, drawn[1], drawn[2].T)


@pytest.mark.parametrize("gated", [True, False])
def test_changes_are_cosine_distances_of_rows_and_columns(gated):
    a, b = ffn(0, gated), ffn(1, gated)
    changes = dict(zip(part_names(len(a.parts)), neuron_changes(a, b), strict=True))
    assert list(changes) == (["gate", "up", "down"] if gated else ["up", "down"])
    for i in (0, 7):
        assert changes["up"][i] == pytest.approx(cosine(a.up[i], b.up[i]), abs=1e-6)
        assert changes["down"][i] == pytest.approx(cosine(a.down[:, i], b.down[:, i]), abs=1e-6)
        if gated:
            assert changes["gate"][i] == pytest.approx(cosine(a.gate[i], b.gate[i]), abs=1e-6)


def test_lengths_do_not_count_and_equal_vectors_do_not_change():
    a = ffn(0)
    assert (neuron_changes(a, a) == 0).all()
    scaled = a._replace(up=3 * a.up)
    assert neuron_changes(a, scaled) == pytest.approx(np.zeros((3, D_FF)), abs=1e-12)


def test_a_vector_that_vanished_has_changed_by_one():
    a = ffn(0)
    up = a.up.clone()
    up[4] = 0
    changes = neuron_changes(a, a._replace(up=up))
    assert changes[1, 4] == 1
    assert changes.sum() == 1
    assert (neuron_changes(a._replace(up=up), a._replace(up=up)) == 0).all()


def test_neurons_are_compared_by_the_order_of_the_variant():
    a = ffn(0)
    order = torch.randperm(D_FF, generator=torch.Generator().manual_seed(2))
    placed = a.at(torch.argsort(order))
    assert (neuron_changes(a, placed, order) == 0).all()
    assert (neuron_changes(a, placed) > 0).any()


def test_the_smallest_change_has_rank_one_and_ties_share_theirs():
    ranks = normalised_ranks(np.array([5.0, 1.0, 1.0, -2.0]))
    assert ranks.tolist() == [0.25, 0.625, 0.625, 1.0]


def test_z_scores_are_those_of_scipy_averaged_over_the_parts_that_vary():
    changes = np.random.default_rng(0).exponential(size=(3, 50))
    scale = ChangeScale.of(changes)
    assert scale.z(changes) == pytest.approx(zscore(changes, axis=1).mean(axis=0))
    changes[0] = 0
    assert ChangeScale.of(changes).z(changes) == pytest.approx(
        zscore(changes[1:], axis=1).mean(axis=0)
    )
    with pytest.raises(HQError, match="no neuron changed more than another"):
        ChangeScale.of(np.zeros((3, 50)))


def test_p_values_are_uniform_for_neurons_at_random_and_small_for_stable_ones():
    rng = np.random.default_rng(0)
    ranks = (1 + rng.permutation(2000)) / 2000
    chosen = [rng.choice(2000, 10, replace=False) for _ in range(15)]
    matched = rng.choice(2000, (50, 10))
    p = np.array([rank_test(ranks, flat, matched, seed=1).p_stable for flat in chosen])
    assert 0.25 < p.mean() < 0.75
    stable = np.argsort(ranks)[-10:]
    test = rank_test(ranks, stable, matched, seed=1)
    assert (test.p_stable, test.p_changed) == (1e-4, 1.0)
    assert test.p_stable_matched == pytest.approx(1 / 51)
    assert 0.99 < test.rank.value <= test.rank.high <= 1
    assert test.difference.value == pytest.approx(ranks[stable].mean() - ranks[matched].mean())
    changed = rank_test(ranks, np.argsort(ranks)[:10], matched, seed=1)
    assert (changed.p_changed, changed.p_stable) == (1e-4, 1.0)


class Fits:
    """A cross-fit whose fits are named by the folds that they leave out."""

    def __init__(self, folds: int) -> None:
        self.neurons = "all"
        self.folds = [Fold(f, folds) for f in range(folds)]


class Fold:
    def __init__(self, own: int, folds: int) -> None:
        self.probe = f"without {own}"
        self.calibration = {g: f"without {own} and {g}" for g in range(folds) if g != own}


def test_a_fit_leaves_out_the_folds_that_are_related():
    probes = Fits(3)
    assert fit_without(probes, frozenset()) == "all"
    assert fit_without(probes, frozenset({2})) == "without 2"
    assert fit_without(probes, frozenset({2, 0})) == "without 0 and 2"


def test_scores_of_different_fits_are_comparable():
    values = np.array([0.0, 1.0, 2.0, 3.0])
    by_fit = {frozenset({0}): values, frozenset({1}): 100 * values + 7, frozenset(): 0 * values}
    related = [frozenset({0}), frozenset({1}), frozenset({0}), frozenset({1})]
    assert unseen_scores(by_fit.__getitem__, related) == pytest.approx(zscore(values))
    assert unseen_scores(by_fit.__getitem__, [frozenset()] * 4).tolist() == [0] * 4
