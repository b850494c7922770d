"""Repair without labels: exact where drift is exact, and never worse by construction where not."""

import numpy as np
import pytest

from hq.errors import HQError
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
from hq.probe.repair import REPAIRS, aligned, require_texts, reweighted, standardised
from hq.stats.auroc import auroc

K = 6
MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=1, d_ff=K)


@pytest.fixture
def probe():
    return NeuronSet(
        model=MODEL,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0.5,
        neurons=tuple(
            Neuron(layer=0, index=i, weight=(-1) ** i * (i + 1) / 4, mean=1.0 + i, scale=0.5)
            for i in range(K)
        ),
    )


def texts(n, seed):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    means = np.arange(K) + 1.0 + 0.3 * y[:, None] * (-1) ** np.arange(K)
    return means + 0.5 * rng.standard_normal((n, K)), y


def affine(values):
    """Another mean and a power of two as the scale of each neuron, so that rounding is no issue."""
    return values * 2.0 ** np.array([0, 1, -1, 2, -2, 1]) + np.arange(K)


@pytest.mark.parametrize("count", [2, 40])
def test_alignment_is_exact_for_an_affine_change_of_each_neuron(probe, count):
    values, y = texts(200, 0)
    unlabelled, _ = texts(count, 1)
    before, frozen = probe.score_unchecked(values), probe.score_unchecked(affine(values))
    repaired = aligned(probe, unlabelled, affine(unlabelled)).score_unchecked(affine(values))
    np.testing.assert_allclose(repaired, before, rtol=1e-9)
    assert auroc(repaired, y) == auroc(before, y)
    assert auroc(frozen, y) < auroc(before, y) - 0.03
    np.testing.assert_array_equal(repaired >= 0.7, before >= 0.7)  # so is every threshold


def test_standardisation_is_exact_on_the_texts_of_the_fit(probe):
    values, y = texts(200, 0)
    own = standardised(probe, values, values)  # as a fit on these texts standardises
    repaired = standardised(own, values, affine(values))
    np.testing.assert_allclose(
        repaired.score_unchecked(affine(values)), own.score_unchecked(values), rtol=1e-9
    )
    assert auroc(repaired.score_unchecked(affine(values)), y) == auroc(
        own.score_unchecked(values), y
    )


def test_without_a_change_nothing_is_repaired(probe):
    values, _ = texts(50, 0)
    for repair in (aligned, reweighted):
        np.testing.assert_allclose(
            repair(probe, values, values).score_unchecked(values),
            probe.score_unchecked(values),
            rtol=1e-9,
        )


def noisy(values, seed):
    """Two neurons become noise, the others change a little."""
    size = np.array([3.0, 0.1, 0.1, 3.0, 0.1, 0.1])
    return values + size * np.random.default_rng(seed).standard_normal(values.shape)


def test_weights_of_neurons_that_became_noise_shrink(probe):
    values, y = texts(2000, 0)
    unlabelled, _ = texts(400, 1)
    repaired = reweighted(probe, unlabelled, noisy(unlabelled, 2))
    shares = [
        new.weight / new.scale / (old.weight / old.scale)
        for old, new in zip(probe.neurons, repaired.neurons, strict=True)
    ]
    assert max(shares[0], shares[3]) < 0.1
    assert min(shares[1], shares[2], shares[4], shares[5]) > 0.5
    new = noisy(values, 3)
    before, after = probe.score_unchecked(values), repaired.score_unchecked(new)
    assert auroc(after, y) > auroc(aligned(probe, values, new).score_unchecked(new), y) + 0.01
    assert after.mean() == pytest.approx(before.mean(), abs=0.1)  # thresholds keep their meaning


def test_the_penalty_has_the_least_error_of_leaving_out_each_text(probe):
    """The leave-one-out errors of the closed form are those of as many fits."""
    unlabelled, _ = texts(12, 1)
    new = noisy(unlabelled, 2)
    fitted = reweighted(probe, unlabelled, new)
    moved = aligned(probe, unlabelled, new)
    parameters = [[n.mean, n.scale, n.weight] for n in moved.neurons]
    mean, scale, own = np.array(parameters).T
    Z, target = (new - mean) / scale, probe.score_unchecked(unlabelled) - probe.intercept

    def fit(rows, penalty):
        X, r = Z[rows], target[rows] - Z[rows] @ own
        centred = X - X.mean(axis=0)
        # n of the whole sample: leaving out a text does not change the penalty.
        gram = centred.T @ centred + len(Z) * penalty * np.eye(K)
        change = np.linalg.solve(gram, centred.T @ (r - r.mean()))
        weight = own + change
        return weight, target[rows].mean() - X.mean(axis=0) @ weight

    def error(penalty):
        errors = []
        for i in range(len(Z)):
            weight, shift = fit(np.delete(np.arange(len(Z)), i), penalty)
            errors.append(target[i] - Z[i] @ weight - shift)
        return np.mean(np.square(errors))

    penalties = 10.0 ** np.arange(-3, 4)
    best = min(penalties, key=error)
    expected, _ = fit(np.arange(len(Z)), best)
    np.testing.assert_allclose([n.weight for n in fitted.neurons], expected, rtol=1e-7)


@pytest.mark.parametrize("repair", REPAIRS.values())
def test_a_constant_neuron_keeps_its_scale(probe, repair):
    unlabelled, _ = texts(20, 1)
    new = unlabelled.copy()
    new[:, 2] = 7.0
    repaired = repair(probe, unlabelled, new)
    assert repaired.neurons[2].scale == 0.5
    assert np.isfinite(repaired.score_unchecked(new)).all()


def test_one_text_has_no_scale():
    require_texts(2)
    with pytest.raises(HQError, match="2 unlabelled texts or more, not 1"):
        require_texts(1)
