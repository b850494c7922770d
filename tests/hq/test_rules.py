"""Cross-fits with several rules: the same sets as a cross-fit, and sets of given sizes."""

import numpy as np
import pytest

from hq.errors import HQError
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity
from hq.probe.cross_fit import cross_fit
from hq.probe.rules import DEFAULT_RULE, RULES, FoldSets, cross_fit_by_rule, size_rule

MODEL = ModelIdentity(name="tiny", fingerprint="abc", architecture="Llama", n_layers=2, d_ff=60)
N, K = 240, 3
UNITS = np.arange(N) // 3
FOLDS = UNITS % K
SETTINGS = {"repeats": 1, "max_fraction": 0.1, "seed": 4}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    logs = rng.standard_normal((N, MODEL.n_neurons))
    y = (1.5 * logs[:, [3, 70, 101]].sum(axis=1) + rng.logistic(size=N) > 0).astype(np.int64)
    values = np.exp(logs / 2 - 5).astype(np.float32)
    other = np.exp(rng.standard_normal(logs.shape) / 2 - 5).astype(np.float32)
    answer = Features(values, "sum", "answer", MODEL, "fp16")
    return answer, y, Features(other, "sum", "other", MODEL, "fp16")


@pytest.fixture(scope="module")
def sets(data):
    steps = []
    fitted = cross_fit_by_rule(
        data[0], data[1], UNITS, FOLDS, (2, 9), finished=lambda: steps.append(1), **SETTINGS
    )
    assert len(steps) == K + 2
    return fitted


@pytest.mark.parametrize("labels", ["1-vs-1", "3-vs-1"])
def test_the_default_rule_is_that_of_a_cross_fit(data, labels):
    features, y, other = data
    other = other if labels == "3-vs-1" else None
    fitted, curves = cross_fit(features, y, UNITS, FOLDS, other=other, **SETTINGS)
    by_rule = cross_fit_by_rule(features, y, UNITS, FOLDS, (2,), other=other, **SETTINGS)
    own = by_rule[DEFAULT_RULE]
    assert own.neurons.neurons == fitted.neurons.neurons
    assert own.neurons.labels == labels
    assert own.neurons.intercept == fitted.neurons.intercept
    assert [s.neurons for s in own.folds] == [f.probe.neurons for f in fitted.folds]
    np.testing.assert_array_equal(own.scores(features, FOLDS), fitted.scores(features, FOLDS))
    best = max(curves.all, key=lambda point: point.auroc)
    assert by_rule["best"].neurons.provenance["C"] == best.C
    assert len(by_rule["best"].neurons.neurons) == best.n_nonzero


def test_each_rule_has_its_sets(data, sets):
    assert list(sets) == [*RULES, "2 neurons", "9 neurons"]
    for name, of_rule in sets.items():
        assert of_rule.neurons.provenance["rule"] == name
        assert len(of_rule.folds) == K
    for size in (2, 9):
        numbers = [
            len(s.neurons) for s in (sets[size_rule(size)].neurons, *sets[size_rule(size)].folds)
        ]
        assert all(size - 3 <= n <= size and n > 0 for n in numbers), numbers
    planted = {3, 70, 101}
    assert planted <= set(sets["9 neurons"].neurons.flat.tolist())
    assert set(sets["2 neurons"].neurons.flat.tolist()) <= planted


def test_a_size_may_exceed_the_cap(data):
    capped = SETTINGS | {"max_fraction": 0.05}
    fitted = cross_fit_by_rule(data[0], data[1], UNITS, FOLDS, (20,), **capped)
    assert len(fitted["best"].neurons.neurons) < 6
    assert len(fitted[size_rule(20)].neurons.neurons) > 15


def test_scores_are_of_the_fold_that_did_not_see_the_response(data, sets):
    own, features = sets[DEFAULT_RULE], data[0]
    folds = np.where(np.arange(N) < 6, -1, FOLDS)
    scores = own.scores(features, folds)
    assert np.isnan(scores[:6]).all()
    for fold in range(K):
        rows = folds == fold
        np.testing.assert_array_equal(scores[rows], own.folds[fold].score(features)[rows])


@pytest.mark.parametrize("sizes", [(), (0, 3)])
def test_sizes_that_are_no_numbers_of_neurons(data, sizes):
    with pytest.raises(HQError, match="not numbers of neurons"):
        cross_fit_by_rule(data[0], data[1], UNITS, FOLDS, sizes, **SETTINGS)


def test_fold_sets_need_folds(sets):
    with pytest.raises(ValueError, match="fewer than two folds"):
        FoldSets(neurons=sets["best"].neurons, folds=())


def test_a_loosened_tolerance_is_recorded_for_a_given_size(data, sets, monkeypatch):
    assert "tolerance" not in sets["2 neurons"].neurons.provenance
    # No float32 fit meets the first of these.
    monkeypatch.setattr("hq.probe.l1._TOLERANCES", (1e-12, 1e-2))
    with pytest.warns(UserWarning, match="met a tolerance"):
        loose = cross_fit_by_rule(data[0], data[1], UNITS, FOLDS, (2,), **SETTINGS)
    assert loose["2 neurons"].neurons.provenance["tolerance"] == 1e-2
