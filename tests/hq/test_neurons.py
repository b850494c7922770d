import json

import numpy as np
import pytest

from hq.errors import HQError
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet

MODEL = ModelIdentity(name="tiny", fingerprint="abc", architecture="Llama", n_layers=3, d_ff=4)


def neuron(layer: int, index: int, weight: float = 1.0) -> Neuron:
    return Neuron(layer=layer, index=index, weight=weight, mean=0.5, scale=2.0)


@pytest.fixture
def chosen() -> NeuronSet:
    return NeuronSet(
        model=MODEL,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=-0.25,
        neurons=(neuron(0, 3, 1.5), neuron(2, 0, -1.0), neuron(2, 1, 0.5)),
        thresholds={"youden": 0.1},
        provenance={"C": 0.03, "n": 10, "solver": "x"},
    )


def test_a_set_survives_its_file(chosen, tmp_path):
    path = tmp_path / "new folder" / "set.json"
    chosen.save(path)
    assert NeuronSet.load(path, MODEL) == chosen
    assert [p.name for p in path.parent.iterdir()] == ["set.json"]
    assert (
        len(path.read_text(encoding="utf-8").splitlines()) > 30
    )  # one field a line, so that a diff can be read


def test_saving_replaces_the_old_file(chosen, tmp_path):
    path = tmp_path / "set.json"
    path.write_text("old", encoding="utf-8")
    chosen.save(path)
    assert NeuronSet.load(path) == chosen


def test_h_neurons_are_the_positive_weights(chosen):
    assert [(n.layer, n.index) for n in chosen.positive] == [(0, 3), (2, 1)]
    assert chosen.flat.tolist() == [3, 8, 9]
    assert chosen.flat_positive.tolist() == [3, 9]
    assert chosen.layers == {0: 1, 2: 1}
    assert chosen.flat.dtype == np.int64


def traced(values: np.ndarray, **changes: object) -> Features:
    stated = {"measure": "sum", "span": "answer", "model": MODEL, "precision": "nf4"}
    return Features(values, **stated | changes)


def test_score_is_the_standardised_linear_form(chosen):
    X = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    z = (X[:, [3, 8, 9]].astype(float) - 0.5) / 2.0
    expected = z[:, 0] * 1.5 - z[:, 1] + z[:, 2] * 0.5 - 0.25
    scores = chosen.score(traced(X))
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    np.testing.assert_array_equal(chosen.score_unchecked(X[:, [3, 8, 9]]), scores)
    np.testing.assert_array_equal(chosen.score(traced(X)[np.array([3, 1])]), scores[[3, 1]])
    assert scores.dtype == np.float64


def test_score_refuses_other_widths_and_nan(chosen):
    with pytest.raises(HQError, match="has 12 neurons"):
        traced(np.zeros((2, 13), dtype=np.float32))
    with pytest.raises(HQError, match="one column per neuron"):
        chosen.score_unchecked(np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(HQError, match="NaN"):
        chosen.score(traced(np.full((2, 12), np.nan, dtype=np.float32)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "output"}, "found on sum over the answer span, .* output over the answer"),
        ({"measure": "contribution"}, "contribution over the answer span: trace with"),
        ({"span": "prompt"}, "sum over the prompt span: trace with --measures sum --spans answer"),
        ({"model": MODEL.model_copy(update={"fingerprint": "xyz"})}, "fingerprint abc.*not to"),
        ({"missing": frozenset({0, 8})}, r"At nf4 1 of the set's 3 neurons .* \(2, 0\) first"),
    ],
)
def test_score_refuses_traces_of_another_kind(chosen, change, message):
    values = np.zeros((2, 12), dtype=np.float32)
    assert np.isfinite(chosen.score(traced(values))).all()
    with pytest.raises(HQError, match=message) as error:
        chosen.score(traced(values, **change))
    assert "\n" not in str(error.value)


def test_a_missing_neuron_of_no_weight_is_no_matter(chosen):
    values = np.zeros((2, 12), dtype=np.float32)
    scores = chosen.score(traced(values, missing=frozenset({0, 11})))
    np.testing.assert_array_equal(scores, chosen.score(traced(values)))


@pytest.mark.parametrize(
    "neurons",
    [
        (neuron(2, 0), neuron(0, 3)),
        (neuron(0, 3), neuron(0, 3)),
        (neuron(3, 0),),
        (neuron(0, 4),),
    ],
    ids=["unsorted", "twice", "layer outside", "index outside"],
)
def test_neurons_must_be_sorted_unique_and_inside(chosen, neurons):
    fields = chosen.model_dump() | {"neurons": neurons}
    with pytest.raises(ValueError, match="neuron"):
        NeuronSet(**fields)


def edit(chosen: NeuronSet, **fields: object) -> str:
    return json.dumps(json.loads(chosen.model_dump_json()) | fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 7}, "schema version 7 but this hq reads 1 and 2"),
        ({"cett": "mean"}, "cett"),
        ({"surprise": 1}, "surprise"),
        ({"intercept": None}, "intercept"),
        ({"neurons": [{"layer": 9, "index": 0, "weight": 1, "mean": 0, "scale": 1}]}, "outside"),
        ({"neurons": [{"layer": 0, "index": 0, "weight": 1, "mean": 0, "scale": 0}]}, "scale"),
    ],
)
def test_a_wrong_field_is_named(chosen, tmp_path, change, message):
    path = tmp_path / "set.json"
    path.write_text(edit(chosen, **change), encoding="utf-8")
    with pytest.raises(HQError, match=message) as error:
        NeuronSet.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not valid JSON"), (b"", "not valid JSON"), (b"\xff\xfe\x00", "not text")],
)
def test_a_file_that_is_no_json_is_refused(tmp_path, content, message):
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(HQError, match=message):
        NeuronSet.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(HQError, match="cannot be read"):
        NeuronSet.load(tmp_path / "none.json")
    with pytest.raises(HQError, match="cannot be read"):
        NeuronSet.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"fingerprint": "xyz"}, {"d_ff": 8}, {"n_layers": 4}], ids=lambda c: next(iter(c))
)
def test_another_model_is_refused(chosen, tmp_path, change):
    path = tmp_path / "set.json"
    chosen.save(path)
    with pytest.raises(HQError, match=next(iter(change))):
        NeuronSet.load(path, MODEL.model_copy(update=change))


def test_the_name_may_differ(chosen, tmp_path):
    path = tmp_path / "set.json"
    chosen.save(path)
    assert NeuronSet.load(path, MODEL.model_copy(update={"name": "a local copy"})) == chosen


def test_a_failed_save_leaves_the_old_file(chosen, tmp_path, monkeypatch):
    path = tmp_path / "set.json"
    path.write_text("old", encoding="utf-8")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("hq.storage.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        chosen.save(path)
    assert path.read_text(encoding="utf-8") == "old"
