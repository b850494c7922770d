"""Bundles: what comes back, which model file they are for, and what is refused though sealed."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.monitor.bundle import (
    ALL,
    ARRAYS,
    BUNDLE_SCHEMA,
    CARD,
    DOMAINS,
    FILES,
    NEURONS,
    VALIDATION,
    Bundle,
    Domain,
)
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.storage.verified_folder import MANIFEST, read_verified_folder, write_verified_folder
from tests import bundles
from tests.bundles import RATE
from tests.hq import gguf_files


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return gguf_files.write(tmp_path_factory.mktemp("model") / "tiny.gguf", "Q8_0")


def neurons_of(file: GGUFFile) -> NeuronSet:
    return NeuronSet(
        model=file.identity,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0.1,
        neurons=(
            Neuron(layer=0, index=3, weight=1.0, mean=0.01, scale=0.02),
            Neuron(layer=2, index=7, weight=-2.0, mean=0.01, scale=0.02),
        ),
        thresholds={"youden": 0.0},
        provenance={"prompt": "few-shot"},
    )


@pytest.fixture
def folder(model, tmp_path):
    domains = {
        ALL: Domain(0.1 + 0.2, 0.1, 30, RATE, RATE),
        "capital": Domain(threshold=-1e-300, false_alarms=0.2, n=4),
    }
    return bundles.save(tmp_path / "bundle", model, neurons_of(GGUFFile(model)), domains)


def resealed(folder, files=None, facts=None):
    """The bundle with other content, sealed anew as a maker with a fault would have."""
    found = read_verified_folder(folder, BUNDLE_SCHEMA, FILES)
    shutil.rmtree(folder)
    changed = {**found.files, **(files or {})}
    write_verified_folder(folder, BUNDLE_SCHEMA, {**found.facts, **(facts or {})}, changed)


def test_a_bundle_comes_back(folder, model):
    file, bundle = GGUFFile(model), Bundle.load(folder)
    assert (bundle.name, bundle.precision, bundle.prompt) == ("tiny", "gguf-q8_0", "few-shot")
    assert bundle.neurons == neurons_of(file)
    assert bundle.domain() == Domain(0.1 + 0.2, 0.1, 30, RATE, RATE)  # to the last bit
    assert bundle.domain("capital").threshold == -1e-300
    assert bundle.domain("capital").realised is None
    assert bundle.validation.auroc == RATE
    assert bundle.card == "# tiny\n"
    np.testing.assert_array_equal(bundle.norms, file.norms[[0, 2], [3, 7]])
    assert bundle.norms.dtype == np.float32
    assert (bundle.scores.dtype, len(bundle.scores), len(bundle.right)) == (np.float64, 9, 5)
    assert len(bundle.digest) == 64
    bundle.require(file)


def test_a_bundle_of_an_earlier_version_with_seeds_in_its_estimates(folder):
    content = json.loads((folder / VALIDATION).read_text(encoding="utf-8"))
    estimate = {"value": 0.1, "low": 0.02, "high": 0.2, "n": 30, "seed": 7}
    resealed(folder, {VALIDATION: json.dumps(content | {"auroc": estimate}).encode()})
    assert Bundle.load(folder).validation.auroc == RATE


def test_thresholds_move_without_labels(folder):
    bundle = Bundle.load(folder)
    there = 2 * bundle.scores - 1
    transferred = bundle.transferred(np.random.default_rng(0).permutation(there))
    assert transferred.keys() == bundle.domains.keys()
    for name, domain in bundle.domains.items():
        assert transferred[name] == pytest.approx(2 * domain.threshold - 1)


def test_a_domain_that_is_not_there(folder):
    with pytest.raises(HQError, match="no domain 'sport': it has all, capital"):
        Bundle.load(folder).domain("sport")


def test_another_model_is_refused(folder, tmp_path):
    other = GGUFFile(gguf_files.write(tmp_path / "other.gguf", "Q8_0", seed=1))
    with pytest.raises(HQError, match="The bundle tiny belongs to"):
        Bundle.load(folder).require(other)


def test_another_file_of_the_model_is_refused(model, folder, tmp_path):
    """Metadata alone is another: the tensors, and so the identity, are the same."""
    path = gguf_files.write(tmp_path / "b.gguf", "Q8_0", changes={"general.author": "someone else"})
    other = GGUFFile(path)
    assert other.identity.fingerprint == GGUFFile(model).identity.fingerprint
    with pytest.raises(HQError, match=r"another file of that model.*hq bundle make"):
        Bundle.load(folder).require(other)


def test_a_file_of_the_same_size_is_refused(model, folder, tmp_path):
    path = tmp_path / "c.gguf"
    path.write_bytes(model.read_bytes().replace(b"tiny llama", b"tiny lambs"))
    with pytest.raises(HQError, match="another file of that model"):
        Bundle.load(folder).require(GGUFFile(path))


def test_a_copy_under_another_name_is_the_file(model, folder, tmp_path):
    path = tmp_path / "renamed.gguf"
    shutil.copyfile(model, path)
    Bundle.load(folder).require(GGUFFile(path))


def test_another_attention_is_refused(folder):
    plain = Bundle.load(folder)
    plain.require_attention("gguf-source")
    with pytest.raises(HQError, match="validated with no flash attention, K f32, V f32"):
        plain.require_attention("gguf-q8_0+fa")
    resealed(folder, facts={"precision": "gguf-q8_0+kv-q8_0"})
    quantized = Bundle.load(folder)
    assert quantized.source_precision == "gguf-source+kv-q8_0"
    quantized.require_attention(quantized.source_precision)
    for other in ("gguf-source", "gguf-source+fa", "gguf-source+kv-q4_0"):
        with pytest.raises(HQError, match=r"K q8_0, V q8_0.*run the file at gguf-source\+kv-q8_0"):
            quantized.require_attention(other)


def test_norms_of_another_file_are_refused(model, folder):
    arrays = {"norms": np.ones(2, np.float32), "scores": np.ones(1), "right": np.ones(1)}
    resealed(folder, {ARRAYS: save(arrays)})
    with pytest.raises(HQError, match="norms in the bundle tiny"):
        Bundle.load(folder).require(GGUFFile(model))


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_byte_may_change(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0x20
    (folder / name).write_bytes(content)
    with pytest.raises(HQError, match=f"{name} was changed"):
        Bundle.load(folder)


def test_another_manifest_is_another_bundle(folder):
    """Whoever rewrites the manifest changes the digest of the bundle, which logs name."""
    before = Bundle.load(folder).digest
    resealed(folder, facts={"prompt": "chat"})
    assert Bundle.load(folder).digest != before


def domains(**change):
    return json.dumps({ALL: {"threshold": 0.5, "false_alarms": 0.1, "n": 30} | change}).encode()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({DOMAINS: domains(threshold=float("nan"))}, "all.threshold"),
        ({DOMAINS: domains(threshold=float("inf"))}, "all.threshold"),
        ({DOMAINS: domains(threshold="much")}, "all.threshold"),
        ({DOMAINS: domains().replace(b"0.5", b"1e999")}, "all.threshold"),
        ({DOMAINS: domains(false_alarms=0)}, "all.false_alarms"),
        ({DOMAINS: domains(false_alarms=1)}, "all.false_alarms"),
        ({DOMAINS: domains(n=0)}, "all.n"),
        ({DOMAINS: domains(more=1)}, "all.more"),
        ({DOMAINS: domains(realised={"value": 1})}, "all.realised.low"),
        (
            {
                DOMAINS: domains(
                    realised={"value": float("nan"), "low": 0, "high": 1, "n": 1, "seed": 0}
                )
            },
            "finite",
        ),
        ({DOMAINS: b"{}"}, "no domain 'all'"),
        ({DOMAINS: b"{"}, "Invalid JSON"),
        ({VALIDATION: b"{}"}, "auroc"),
        ({NEURONS: b"{}"}, "schema_version"),
        ({ARRAYS: b""}, "no safetensors file"),
        ({ARRAYS: b"\x80\x04\x95pickle"}, "no safetensors file"),
        ({ARRAYS: save({"norms": np.ones(2, np.float32)})}, "other arrays"),
        (
            {ARRAYS: save({"norms": np.ones(3), "scores": np.ones(1), "right": np.ones(1)})},
            "not of the set's 2 neurons",
        ),
        (
            {ARRAYS: save({"norms": np.ones(2), "scores": np.ones((1, 1)), "right": np.ones(1)})},
            "not of the set's 2 neurons",
        ),
        (
            {
                ARRAYS: save(
                    {"norms": np.ones(2), "scores": np.array([np.nan]), "right": np.ones(1)}
                )
            },
            "other than finite numbers",
        ),
        (
            {ARRAYS: save({n: np.ones(2, dtype=bool) for n in ("norms", "scores", "right")})},
            "other than finite numbers",
        ),
        ({CARD: b"\xff"}, None),
    ],
)
def test_content_that_no_bundle_has(folder, files, words):
    """Sealed, so that the checksums agree, and refused all the same."""
    if words == "schema_version":
        files = {NEURONS: (folder / NEURONS).read_bytes().replace(b'version": 2', b'version": 9')}
    resealed(folder, files)
    if words is None:
        assert Bundle.load(folder).card == "\ufffd"
        return
    with pytest.raises(HQError) as error:
        Bundle.load(folder)
    assert words in str(error.value), error.value
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"name": "../x"}, "name"),
        ({"name": 'x" y'}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"model": {}}, "model.name"),
        ({"model": None}, "model"),
    ],
)
def test_facts_that_no_bundle_has(folder, facts, words):
    resealed(folder, facts=facts)
    with pytest.raises(HQError, match=words):
        Bundle.load(folder)


def test_the_schema_version_is_checked_first(folder):
    text = (
        (folder / MANIFEST)
        .read_text(encoding="utf-8")
        .replace('"schema_version": 1', '"schema_version": 2')
    )
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / CARD).unlink()
    with pytest.raises(HQError, match="schema version 2 but this hq reads 1"):
        Bundle.load(folder)


def test_a_threshold_that_is_no_number_is_not_even_made():
    with pytest.raises(ValueError, match="finite"):
        Domain(threshold=float("nan"), false_alarms=0.1, n=3)
