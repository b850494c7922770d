"""Identification of planted neurons, the choice of C, 3-vs-1 labels, and invalid input."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from hq.errors import HQError
from hq.neurons.features import Features, standardise
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from hq.probe.identify import design_of, identify, neurons_of
from hq.probe.l1 import TOLERANCE, l1_path
from hq.probe.regularisation import CurvePoint, choose_c, grouped_folds
from hq.stats.auroc import auroc, estimate_auroc
from hq.stats.thresholds import youden_threshold

MODEL = ModelIdentity(name="tiny", fingerprint="abc", architecture="Llama", n_layers=4, d_ff=150)
PLANTED = np.array([7, 160, 333, 590])  # raise the odds of hallucination
LOWERING = np.array([20, 450])
CAP = 0.05


def simulate(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logs = rng.standard_normal((n, MODEL.n_neurons))
    odds = 2 * (logs[:, PLANTED].sum(axis=1) - logs[:, LOWERING].sum(axis=1))
    y = (odds + rng.logistic(size=n) > 0).astype(np.int64)
    return np.exp(0.5 * logs - 7).astype(np.float32), y


def features(values: np.ndarray, span: str = "answer", **changes: object) -> Features:
    """Features of the model, as a trace returns them."""
    settings = {"measure": "sum", "model": MODEL, "precision": "fp16"}
    return Features(values, span=span, **settings | changes)


def choose(
    X: np.ndarray | Features,
    y: np.ndarray,
    *,
    other: np.ndarray | Features | None = None,
    groups: np.ndarray | None = None,
    folds: int = 5,
    max_fraction: float = CAP,
    Cs: list[float] | None = None,
) -> tuple[NeuronSet, list[CurvePoint]]:
    """Return the set at the chosen C, without a threshold, and the curve."""
    answers = X if isinstance(X, Features) else features(X)
    others = features(other, "other") if isinstance(other, np.ndarray) else other
    design = design_of(answers, y, groups, folds, others)
    choice = choose_c(design, design.all_rows, max_fraction * MODEL.n_neurons, folds, 3, 0, Cs)
    return neurons_of(choice, design, answers, {}), choice.curve


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return simulate(300, seed=0)


@pytest.fixture(scope="module")
def chosen(data) -> tuple[NeuronSet, list[CurvePoint]]:
    return choose(*data)


def test_planted_neurons_are_selected_with_their_signs(chosen):
    neurons, _ = chosen
    assert set(PLANTED) <= set(neurons.flat_positive)
    assert set(LOWERING) <= set(neurons.flat) - set(neurons.flat_positive)
    strongest = sorted(neurons.positive, key=lambda n: -n.weight)[:4]
    assert {n.layer * 150 + n.index for n in strongest} == set(PLANTED)


def test_the_set_predicts_unseen_responses(chosen):
    X, y = simulate(300, seed=1)
    neurons, _ = chosen
    assert auroc(neurons.score(features(X)), y) > 0.9


def test_c_is_the_smallest_within_one_standard_error_of_the_best(chosen):
    neurons, curve = chosen
    assert all(p.n_nonzero < CAP * MODEL.n_neurons and p.n_positive > 0 for p in curve)
    best = max(curve, key=lambda p: p.auroc)
    point = min((p for p in curve if p.auroc >= best.auroc - best.auroc_se), key=lambda p: p.C)
    assert curve[0].C < point.C < best.C  # neither end, nor the best
    assert neurons.provenance["C"] == point.C
    assert neurons.provenance["cv_auroc"] == point.auroc
    assert len(neurons.neurons) == point.n_nonzero
    assert len(neurons.positive) == point.n_positive


def test_a_point_of_the_curve_is_the_mean_of_three_cross_validations(data):
    """Recomputed with liblinear: the AUROC within folds, the deviance and the standard error."""
    X, y = data
    C, groups = 0.1, np.arange(300) // 3
    _, (point,) = choose(X, y, Cs=[C], groups=groups, max_fraction=0.5)
    design = design_of(features(X), y, groups, 5)
    areas, errors, deviances = [], [], []
    for seed in range(3):
        scores, folds = np.empty(300), np.empty(300, dtype=int)
        for fold, test in enumerate(grouped_folds(design, design.all_rows, 5, seed)):
            train = np.setdiff1d(np.arange(300), test)
            assert not np.intersect1d(groups[train], groups[test]).size
            fitted = standardise(X[train])
            model = LogisticRegression(
                solver="liblinear",
                l1_ratio=1,
                C=C,
                intercept_scaling=100.0,
                tol=1e-6,
                max_iter=10000,
            ).fit(fitted.Z.astype(float), y[train])
            scores[test] = model.decision_function((X[test] - fitted.mean) / fitted.scale)
            folds[test] = fold
        area = estimate_auroc(scores, y, groups, folds)
        areas.append(area.value)
        errors.append(area.se)
        deviances.append(2 * np.logaddexp(0, np.where(y == 1, -scores, scores)).mean())
    assert point.auroc == pytest.approx(np.mean(areas), abs=1e-3)
    assert point.deviance == pytest.approx(np.mean(deviances), abs=2e-3)
    # The standard error is that of the mean over repeats, at most the mean standard error.
    assert 0.7 * np.mean(errors) < point.auroc_se < 1.01 * np.mean(errors)


def test_the_threshold_is_youdens_of_held_out_decision_values(data):
    X, y = data
    groups = np.arange(300) // 2
    neurons = identify(features(X), y, groups=groups, max_fraction=CAP)
    design = design_of(features(X), y, groups, 5)
    held_out = np.empty(300)
    for test in grouped_folds(design, design.all_rows, 5, 0):
        train = np.setdiff1d(np.arange(300), test)
        fitted = standardise(X[train])
        path = l1_path(fitted.Z, y[train], [float(neurons.provenance["C"])])
        held_out[test] = (X[test] - fitted.mean) / fitted.scale @ path.coefs[0] + path.intercepts[0]
    assert neurons.thresholds["youden"] == pytest.approx(youden_threshold(held_out, y), abs=0.02)
    assert neurons.provenance["rule"] == "one standard error below the best AUROC"
    assert neurons.provenance["repeats"] == 3


def test_a_tighter_cap_is_kept(data):
    neurons, curve = choose(*data, max_fraction=0.01)
    assert len(neurons.neurons) < 6
    assert max(p.n_nonzero for p in curve) < 6


def test_the_same_seed_returns_the_same_set(data, chosen):
    assert choose(*data) == chosen


def test_weights_and_standardisation_survive_the_file(data, chosen, tmp_path):
    neurons, _ = chosen
    neurons.save(tmp_path / "set.json")
    loaded = NeuronSet.load(tmp_path / "set.json", MODEL)
    np.testing.assert_array_equal(loaded.score(features(data[0])), neurons.score(features(data[0])))


def test_groups_are_never_divided_between_folds(data):
    """Copies of a response look easy to predict if they are in two folds."""
    rng = np.random.default_rng(0)
    X, y = np.repeat(data[0][:60], 4, axis=0), np.repeat(rng.integers(0, 2, 60), 4)
    _, (divided,) = choose(X, y, Cs=[1.0], max_fraction=0.5)
    _, (together,) = choose(X, y, Cs=[1.0], max_fraction=0.5, groups=np.repeat(np.arange(60), 4))
    assert divided.auroc > 0.9
    assert together.auroc < 0.75


def test_three_against_one_fits_all_rows_with_hallucinated_answers_as_one(data):
    X, y = data
    other = simulate(300, seed=5)[0]
    neurons, _ = choose(X, y, Cs=[0.04], other=other)
    stacked = standardise(np.concatenate([X, other]))
    path = l1_path(stacked.Z, np.concatenate([y, np.zeros_like(y)]), [0.04])
    assert neurons.labels == "3-vs-1"
    assert neurons.provenance["n"] == 600
    np.testing.assert_array_equal(neurons.flat, np.flatnonzero(path.coefs[0]))
    weights = [n.weight for n in neurons.neurons]
    np.testing.assert_allclose(weights, path.coefs[0][neurons.flat], atol=1e-4)
    assert set(PLANTED) <= set(neurons.flat_positive)


def test_three_against_one_is_judged_between_answers(data):
    """Other tokens that are easily separated from answers must not raise the AUROC."""
    X, y = data[0].copy(), np.random.default_rng(3).integers(0, 2, 300)
    other = simulate(300, seed=5)[0]
    X[:, 77] *= 100
    _, curve = choose(X, y, max_fraction=1.0, Cs=[0.2], other=other)
    assert curve[0].auroc < 0.65


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(300, dtype=int)}, "0 groups of hallucinated"),
        ({"y": np.r_[1, np.zeros(299, dtype=int)]}, "1 groups of hallucinated"),
        ({"y": np.full(300, 2)}, "Labels must be"),
        ({"y": np.zeros(299, dtype=int)}, "299 labels"),
        ({"X": np.zeros((0, 600), dtype=np.float32), "y": np.zeros(0, dtype=int)}, "no labelled"),
        ({"X": np.ones((300, 600), dtype=np.float32)}, "No feature varies"),
        ({"folds": 1}, "2 at least"),
        ({"groups": np.zeros(300)}, "1 groups"),
        ({"groups": np.zeros(10)}, "one group per response"),
        ({"Cs": []}, "positive number"),
        ({"Cs": [0.1, -1.0]}, "positive number"),
        ({"Cs": [1e-6]}, "No C selects"),
        ({"max_fraction": 1e-4}, "No C selects .* raise max_fraction"),
        ({"other": np.zeros((3, 600))}, "other tokens"),
    ],
)
def test_invalid_input_raises_an_error(data, change, message):
    arguments: dict[str, Any] = {"X": data[0], "y": data[1]} | change
    with pytest.raises(HQError, match=message):
        choose(**arguments)


@pytest.mark.parametrize(
    ("changes", "other", "message"),
    [
        ({"measure": "contribution"}, None, "Contributions are no shares"),
        ({"span": "other"}, {"span": "other"}, "tokens cannot be 'other'"),
        ({}, {"span": "answer"}, "trace sum over the other span"),
        ({}, {"span": "other", "measure": "output"}, "trace sum over the other span"),
        ({}, {"span": "other", "precision": "nf4"}, "over the other span at fp16"),
    ],
)
def test_features_of_another_kind_raise_an_error(data, changes, other, message):
    X, y = data
    others = None if other is None else features(X, **other)
    with pytest.raises(HQError, match=message):
        choose(features(X, **changes), y, other=others)


def test_a_set_records_the_kind_of_its_features(data):
    neurons, _ = choose(features(data[0], "prompt", measure="output"), data[1], Cs=[0.05])
    assert (neurons.cett, neurons.tokens, neurons.model) == ("output", "prompt", MODEL)
    assert neurons.provenance["precision"] == "fp16"


def test_a_missing_neuron_is_never_selected(data, chosen):
    missing = int(chosen[0].flat[0])
    X = data[0].copy()
    X[:, missing] = 0
    neurons, _ = choose(features(X, missing=frozenset({missing})), data[1], Cs=[0.05, 0.1])
    assert missing not in neurons.flat


def test_nan_is_located_by_layer_and_index(data):
    X = data[0].copy()
    X[4, 151] = np.nan
    with pytest.raises(HQError, match=r"1 feature values .* neuron \(1, 1\)"):
        choose(X, data[1])


def test_the_scale_of_a_neuron_has_no_effect(data, chosen):
    """Each column is standardised, in every fold and where the held-out rows are scored."""
    X, y = data
    scales = 10 ** np.random.default_rng(0).uniform(-3, 3, X.shape[1])
    neurons, curve = choose((X * scales).astype(np.float32), y)
    np.testing.assert_array_equal(neurons.flat, chosen[0].flat)
    aurocs = [[p.auroc for p in points] for points in (curve, chosen[1])]
    np.testing.assert_allclose(aurocs[0], aurocs[1], atol=2e-3)


def test_a_fold_of_one_class_raises_an_error(data, monkeypatch):
    """Large groups can leave the stratified splitter no choice: replace it by one without labels."""

    class Unmixed:
        def __init__(self, folds: int, **_: object) -> None:
            self.split = lambda X, *_: KFold(folds).split(X)

    monkeypatch.setattr("sklearn.model_selection.StratifiedGroupKFold", Unmixed)
    order = np.argsort(data[1])
    with pytest.raises(HQError, match="holds one class only"):
        choose(data[0][order], data[1][order])


def test_a_fit_that_missed_its_tolerance_is_recorded(data, chosen, monkeypatch):
    neurons, curve = chosen
    assert "tolerance" not in neurons.provenance
    assert {point.tolerance for point in curve} == {TOLERANCE}
    monkeypatch.setattr("hq.probe.l1._TOLERANCES", (1e-12, 1e-2))  # no float32 fit meets the first
    with pytest.warns(UserWarning, match=r"met a tolerance of 0\.01 only, not 0\.001"):
        loose, curve = choose(*data, folds=2, Cs=[0.05, 0.1])
    assert loose.provenance["tolerance"] == 1e-2
    assert {point.tolerance for point in curve} == {1e-2}
