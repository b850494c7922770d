"""Cross-fitting: which fit has seen which responses, files, and invalid input."""

from typing import Any

import numpy as np
import pytest

from hq.errors import HQError
from hq.neurons.features import Features, standardise
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from hq.probe.cross_fit import CrossFit, Curves, cross_fit
from hq.probe.l1 import l1_path
from hq.stats.auroc import auroc
from hq.stats.thresholds import youden_threshold

MODEL = ModelIdentity(name="tiny", fingerprint="abc", architecture="Llama", n_layers=2, d_ff=60)
PLANTED = [3, 70, 101]
N, K = 240, 3
GROUPS = np.arange(N) // 4
FOLDS = GROUPS % K


def features(seed: int, span: str = "answer", precision: str = "fp16") -> Features:
    logs = np.random.default_rng(seed).standard_normal((N, MODEL.n_neurons))
    return Features(np.exp(0.5 * logs - 5).astype(np.float32), "sum", span, MODEL, precision)


def labels(of: Features, seed: int = 0) -> np.ndarray:
    odds = 3 * (np.log(of.values[:, PLANTED]) + 5).sum(axis=1)
    return (odds + np.random.default_rng(seed).logistic(size=len(of)) > 0).astype(np.int64)


def fitted(of: Features, y: np.ndarray, **changes: Any) -> tuple[CrossFit, Curves]:
    settings: dict[str, Any] = {"repeats": 1, "max_fraction": 0.2}
    return cross_fit(of, y, changes.pop("groups", GROUPS), FOLDS, **settings | changes)


def by_hand(
    of: Features, y: np.ndarray, train: np.ndarray, C: float, other: Features | None = None
) -> np.ndarray:
    """Decision values of all responses by a fit on `train`."""
    X, target = of.values[train], y[train]
    if other is not None:
        X = np.concatenate([X, other.values[train]])
        target = np.concatenate([target, np.zeros_like(target)])
    scaled = standardise(X)
    path = l1_path(scaled.Z, target, [C])
    decisions = (of.values - scaled.mean) / scaled.scale @ path.coefs[0] + path.intercepts[0]
    return np.asarray(decisions, dtype=np.float64)


@pytest.fixture(scope="module")
def of() -> Features:
    return features(0)


@pytest.fixture(scope="module")
def y(of) -> np.ndarray:
    return labels(of)


@pytest.fixture(scope="module")
def result(of, y) -> tuple[CrossFit, Curves]:
    return fitted(of, y)


def test_each_response_is_scored_by_a_fit_without_its_fold(of, y, result):
    probes, _ = result
    scores = probes.scores(of, FOLDS)
    for fold in range(K):
        C = float(probes.folds[fold].probe.provenance["C"])
        refitted = by_hand(of, y, np.flatnonzero(fold != FOLDS), C)
        test = fold == FOLDS
        np.testing.assert_allclose(scores[test], refitted[test], atol=0.01)
    assert auroc(scores, y, FOLDS) > 0.85


def test_calibration_scores_are_of_fits_without_both_folds(of, y, result):
    probes, _ = result
    scores = probes.calibration_scores(of, FOLDS)
    for fold in range(K):
        C = float(probes.folds[fold].probe.provenance["C"])
        assert np.isnan(scores[fold, fold == FOLDS]).all()
        for other in set(range(K)) - {fold}:
            seen = np.flatnonzero((fold != FOLDS) & (other != FOLDS))
            test = other == FOLDS
            # The same penalty per row.
            refitted = by_hand(of, y, seen, C * (fold != FOLDS).sum() / len(seen))
            centred = refitted[test] - refitted[fold != FOLDS].mean()
            np.testing.assert_allclose(scores[fold, test], centred, atol=0.01)


def test_thresholds_are_youdens_of_scores_that_have_not_seen_the_fold(of, y, result):
    probes, _ = result
    scores, means = probes.calibration_scores(of, FOLDS), probes.means(of, FOLDS)
    for fold in range(K):
        rest = fold != FOLDS
        expected = youden_threshold(scores[fold, rest], y[rest]) + means[fold]
        assert probes.folds[fold].probe.thresholds == {"youden": pytest.approx(expected)}
    centred = probes.scores(of, FOLDS) - means[FOLDS]
    expected = youden_threshold(centred, y) + probes.neurons.score(of).mean()
    assert probes.neurons.thresholds == {"youden": pytest.approx(expected)}


def test_the_labels_of_a_fold_change_nothing_about_its_probe(of, y, result):
    """Neither the weights, nor C, nor the threshold; those of the other folds do change."""
    before, curves = result
    flipped = np.where(FOLDS == 1, 1 - y, y)
    after, curves_after = fitted(of, flipped)
    assert after.folds[1] == before.folds[1]
    assert curves_after.without_fold[1] == curves.without_fold[1]
    assert after.folds[0].probe != before.folds[0].probe
    assert after.folds[2].probe != before.folds[2].probe
    assert after.neurons != before.neurons


def test_the_features_of_a_fold_change_nothing_about_its_probe(of, y, result):
    """Not its standardisation either."""
    values = of.values.copy()
    values[FOLDS == 1] *= 3
    changed = Features(values, "sum", "answer", MODEL, "fp16")
    after, before = fitted(changed, y)[0].folds[1].probe, result[0].folds[1].probe
    assert after.flat.tolist() == before.flat.tolist()
    for a, b in zip(after.neurons, before.neurons, strict=True):
        assert (a.mean, a.scale) == (pytest.approx(b.mean, rel=1e-4), pytest.approx(b.scale, 1e-4))
        assert a.weight == pytest.approx(b.weight, abs=2e-3)


def test_the_set_for_use_is_fitted_on_all_responses(of, y, result):
    neurons = result[0].neurons
    C = float(neurons.provenance["C"])
    refitted = by_hand(of, y, np.arange(N), C)
    np.testing.assert_allclose(neurons.score(of), refitted, atol=0.01)
    assert neurons.provenance["n"] == N
    assert set(PLANTED) <= set(neurons.flat_positive)


def test_three_against_one_leaves_out_both_rows_of_a_response(y):
    of, other = features(0), features(9, "other")
    probes, _ = fitted(of, y, other=other)
    scores = probes.scores(of, FOLDS)
    for fold in range(K):
        probe = probes.folds[fold].probe
        assert probe.labels == "3-vs-1"
        C = float(probe.provenance["C"])
        refitted = by_hand(of, y, np.flatnonzero(fold != FOLDS), C, other)
        test = fold == FOLDS
        np.testing.assert_allclose(scores[test], refitted[test], atol=0.01)


def test_other_precisions_are_scored_by_the_same_probes(of, result):
    probes, _ = result
    noise = np.random.default_rng(4).normal(1, 0.05, of.values.shape).astype(np.float32)
    variant = Features(of.values * noise, "sum", "answer", MODEL, "nf4")
    scores = probes.scores(variant, FOLDS)
    assert 0.9 < np.corrcoef(scores, probes.scores(of, FOLDS))[0, 1] < 1


def test_provenance_is_added_to_the_set_and_all_probes(of, y):
    calls = []
    probes, _ = fitted(of, y, provenance={"prompt": "chat"}, finished=lambda: calls.append(1))
    sets = [probes.neurons, *(fold.probe for fold in probes.folds)]
    assert {s.provenance["prompt"] for s in sets} == {"chat"}
    assert [s.provenance["n"] for s in sets] == [N, *(int((f != FOLDS).sum()) for f in range(K))]
    assert len(calls) == K + 1


def test_the_same_seed_returns_the_same_probes(of, y, result):
    assert fitted(of, y) == result


def test_the_file_contains_everything(result, tmp_path):
    probes, _ = result
    probes.save(tmp_path / "probes.json")
    assert CrossFit.load(tmp_path / "probes.json", MODEL) == probes


def test_files_that_are_no_cross_fit_raise_an_error(result, tmp_path):
    path = tmp_path / "probes.json"
    for content in (None, b"{", b"\xff", b'{"neurons": 1, "folds": []}'):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(HQError, match=r"probes\.json does not hold .* `hq identify`"):
            CrossFit.load(path)
    result[0].save(path)
    other = MODEL.model_copy(update={"fingerprint": "other"})
    with pytest.raises(HQError, match=r"probes\.json belongs to"):
        CrossFit.load(path, other)


def test_a_cross_fit_needs_the_fits_without_every_other_fold(result):
    first, *others = result[0].folds
    incomplete = first.model_copy(update={"calibration": {1: first.calibration[1]}})
    with pytest.raises(ValueError, match="fold 0 has fits without the folds"):
        CrossFit(neurons=result[0].neurons, folds=(incomplete, *others))


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (FOLDS[:10], "10 folds for 240 responses"),
        (np.zeros(N, dtype=int), r"in the folds \[0\], but the probes are of 3"),
        (FOLDS + 1, r"in the folds \[1, 2, 3\]"),
    ],
)
def test_scores_need_the_folds_of_the_fit(of, result, folds, message):
    for scored in (result[0].scores, result[0].calibration_scores):
        with pytest.raises(HQError, match=message):
            scored(of, folds)


def test_scores_need_features_of_the_same_kind(result):
    with pytest.raises(HQError, match="found on sum over the answer span"):
        result[0].scores(features(0, "prompt"), FOLDS)


ONE_LABEL = np.where(FOLDS == 2, 0, np.arange(N) % 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": np.arange(N) % 3}, "A group lies in two folds"),
        ({"folds": GROUPS % 2}, "three or more"),
        ({"folds": FOLDS + 1}, r"numbered \[1, 2, 3\]"),
        ({"folds": FOLDS[:9]}, "240 labels, 240 groups and 9 folds"),
        ({"groups": GROUPS[:9]}, "9 groups and 240 folds"),
        ({"y": ONE_LABEL}, "Fold 2 has 80 responses of one label"),
        ({"y": np.full(N, 3)}, "one label|Labels must be"),
        ({"max_fraction": 1e-6}, "No C selects"),
    ],
)
def test_invalid_input_raises_an_error(of, y, changes, message):
    arguments: dict[str, Any] = {"y": y, "groups": GROUPS, "folds": FOLDS} | changes
    with pytest.raises(HQError, match=message) as error:
        cross_fit(of, **arguments)
    assert "\n" not in str(error.value)


def test_sets_are_ordinary_neuron_sets(result, tmp_path):
    result[0].neurons.save(tmp_path / "neurons.json")
    assert NeuronSet.load(tmp_path / "neurons.json", MODEL) == result[0].neurons
