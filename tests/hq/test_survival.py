import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis

from hq.errors import HQError
from hq.models.ffn_weights import FFN
from hq.neurons.space import NeuronSpace
from hq.probe.survival import (
    STATISTICS,
    DegradedNeurons,
    activity_statistics,
    features,
    fitted_weights,
    predict,
    weight_statistics,
)
from hq.stats.auroc import auroc

LAYERS, D_FF = 5, 200
SPACE = NeuronSpace.rectangular(LAYERS, D_FF)


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    drawn = {name: rng.exponential(size=LAYERS * D_FF) for name in STATISTICS}
    return features(drawn, SPACE)


def errors_from(X, weight, seed):
    noise = np.random.default_rng(seed).normal(size=len(X))
    return X[:, list(STATISTICS).index("magnitude")] * weight + noise


@pytest.mark.parametrize("gated", [True, False])
def test_statistics_of_weights_are_what_they_say(gated):
    torch.manual_seed(0)
    d_model, d_ff = 96, 80  # neither is a multiple of the group
    gate, up, down = torch.randn(d_ff, d_model), torch.randn(d_ff, d_model), torch.randn(96, 80)
    found = weight_statistics(FFN(gate if gated else None, up, down))
    reads = [m.numpy().astype(float) for m in ([gate, up] if gated else [up])]
    write = down.numpy().astype(float)
    i = 70
    assert found["write_norm"][i] == pytest.approx(np.linalg.norm(write[:, i]))
    assert found["write_kurtosis"][i] == pytest.approx(kurtosis(write[:, i]), rel=1e-4)
    assert found["read_kurtosis"][i] == pytest.approx(
        np.mean([kurtosis(m[i]) for m in reads]), rel=1e-4
    )
    peaks = [
        np.abs(g).max() / np.sqrt((g**2).mean()) for m in reads for g in (m[i, :64], m[i, 64:])
    ]
    assert found["read_spread"][i] == pytest.approx(np.mean(peaks))
    shared = np.linalg.norm(np.abs(write[:, 64:]).max(axis=1))
    assert found["write_spread"][i] == pytest.approx(shared / np.linalg.norm(write[:, i]))
    assert all(len(values) == d_ff for values in found.values())


def test_statistics_of_activity_are_what_they_say():
    contributions = np.array([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0]], dtype=np.float32)
    found = activity_statistics(contributions)
    assert found["magnitude"].tolist() == [2, 0, 2]
    assert found["variation"].tolist() == [0.5, 0, 0]
    assert found["outlier"].tolist() == [1.5, 0, 1]
    with pytest.raises(HQError, match="two texts or more"):
        activity_statistics(contributions[:1])


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-3, 3))
def test_features_see_places_within_a_layer_alone(seed, factor, shift):
    rng, space = np.random.default_rng(seed), NeuronSpace.rectangular(3, 20)
    drawn = {name: rng.normal(size=len(space)) for name in STATISTICS}
    moved = {
        name: np.concatenate([np.exp(factor * v + shift * i) for i, v in enumerate(np.split(v, 3))])
        for name, v in drawn.items()
    }
    np.testing.assert_allclose(features(drawn, space), features(moved, space))


def test_the_worst_quarter_of_each_layer_is_hurt():
    errors = np.concatenate([np.arange(8.0), 100 * np.arange(8.0)])
    errors[0] = np.nan
    neurons = DegradedNeurons.of(errors, NeuronSpace.rectangular(2, 8))
    assert np.flatnonzero(neurons.degraded).tolist() == [6, 7, 14, 15]
    assert not neurons.defined[0]
    assert neurons.defined[1:].all()
    with pytest.raises(HQError, match="No neuron of layer 1 contributes"):
        DegradedNeurons.of(np.r_[np.ones(8), np.full(8, np.nan)], NeuronSpace.rectangular(2, 8))


def test_what_statistics_tell_is_predicted_at_the_precision_left_out(X):
    neurons = [DegradedNeurons.of(errors_from(X, -2, seed), SPACE) for seed in range(3)]
    for target, scores in zip(neurons, predict(X, neurons, SPACE), strict=True):
        assert auroc(scores, target.degraded) > 0.9
    fitted = dict(zip(STATISTICS, fitted_weights(X, neurons), strict=True))
    assert min(fitted, key=fitted.get) == "magnitude"
    assert abs(fitted["outlier"]) < 0.2


def test_a_neuron_is_not_known_from_other_precisions(X):
    """The same neurons are degraded at every precision, unrelated to any statistic: chance."""
    neurons = [DegradedNeurons.of(errors_from(X, 0, 7), SPACE)] * 4
    areas = [auroc(s, h.degraded) for s, h in zip(predict(X, neurons, SPACE), neurons, strict=True)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)


def test_a_precision_is_not_known_from_itself(X):
    """The precision that is left out behaves in the opposite way, so its prediction is wrong."""
    neurons = [
        DegradedNeurons.of(errors_from(X, sign * 2, i), SPACE)
        for i, sign in enumerate((1, 1, 1, -1))
    ]
    scores = predict(X, neurons, SPACE)
    assert auroc(scores[3], neurons[3].degraded) < 0.1


def test_neurons_without_an_error_teach_nothing(X):
    errors = errors_from(X, -2, 0)
    silent = errors.copy()
    silent[::3] = np.nan
    few = [DegradedNeurons.of(silent, SPACE), DegradedNeurons.of(errors_from(X, -2, 1), SPACE)]
    assert auroc(predict(X, few, SPACE)[1], few[1].degraded) > 0.85


def test_one_precision_or_one_layer_is_refused(X):
    neurons = DegradedNeurons.of(errors_from(X, 1, 0), SPACE)
    with pytest.raises(HQError, match="two precisions"):
        predict(X, [neurons], SPACE)
    one = DegradedNeurons(neurons.degraded[:D_FF], neurons.defined[:D_FF])
    with pytest.raises(HQError, match="two layers"):
        predict(X[:D_FF], [one, one], NeuronSpace.rectangular(1, D_FF))
