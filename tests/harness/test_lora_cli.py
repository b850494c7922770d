"""`hq lora`: what it writes for each kind of model, and what it refuses."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from hq.backends.llamacpp.backend import LlamaBackend
from hq.gguf.file import GGUFFile
from hq.models.checkpoint import identity
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet


def neuron_set(model: ModelIdentity, *places: tuple[int, int, float]) -> NeuronSet:
    """A set with these weights."""
    return NeuronSet(
        model=model,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0.1,
        neurons=tuple(
            Neuron(layer=layer, index=index, weight=weight, mean=0.01, scale=0.02)
            for layer, index, weight in places
        ),
        thresholds={"youden": 0.0},
    )


PLACES = ((0, 3, 1.0), (1, 5, -2.0), (2, 7, 1.0), (2, 90, 0.5))  # (1, 5) is no H-Neuron


@pytest.fixture
def neurons(gguf, tmp_path):
    """A file of three H-Neurons of the tiny llama, as a checkpoint and as a GGUF file."""
    path = tmp_path / "neurons.json"
    neuron_set(GGUFFile(gguf("llama")).identity, *PLACES).save(path)
    return path


@pytest.fixture
def lora(hq, gguf, neurons):
    """`hq lora` on the tiny llama."""

    def call(**changed):
        options = {"neurons": neurons, "model": gguf("llama"), "into": "a.gguf"} | changed
        return hq(
            "lora", *(part for name, value in options.items() for part in (f"--{name}", value))
        )

    return call


def test_a_gguf_file_gets_an_adapter_for_llama_cpp(lora, gguf, tmp_path):
    outcome = lora()
    assert outcome.code == 0, outcome
    assert outcome.err.strip() == "a.gguf: 3 H-Neurons in 2 layers; at scale s, α = 1 - s"
    with LlamaBackend(gguf("llama")) as backend:
        ids, places = np.arange(5, 15), np.arange(10)
        with backend.model.context(None, tokens=32, batch=16) as context:
            context.adapt(backend.model.adapter(tmp_path / "a.gguf"), 1.0)
            found = context.decode(ids, places, 0 * ids, 1 + 0 * ids).copy()
        context, _ = backend.context(32, 1, 16)
        with context, backend.scale({(0, 3): 0.0, (2, 7): 0.0, (2, 90): 0.0}):
            expected = context.decode(ids, places, 0 * ids, 1 + 0 * ids)
            np.testing.assert_array_equal(found, expected)


def test_a_checkpoint_gets_a_peft_folder(lora, gguf, tmp_path):
    outcome = lora(model=gguf("llama").with_suffix(""), into="folder/adapter", alpha=0.25)
    assert outcome.code == 0, outcome
    assert "at scale s, α = 1 -0.75·s" in outcome.err
    said = json.loads(
        (tmp_path / "folder" / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    )
    assert said["r"] == 2
    assert said["target_modules"] == [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 2)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"into": "adapter"}, "let --into be FILE.gguf"),
        ({"neurons": "nowhere.json"}, "nowhere.json"),
        ({"model": "nowhere.gguf"}, "nowhere.gguf"),
        ({"alpha": 1}, "would change nothing"),
        ({"alpha": "inf"}, "must be 0 or more"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(changed, words, lora, neurons, tmp_path):
    outcome = lora(**changed)
    assert outcome.code == 2, outcome
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert list(tmp_path.iterdir()) == [neurons]


@pytest.mark.parametrize("alpha", [-0.5, "nan"])
def test_an_alpha_below_zero_is_refused(alpha, lora):
    outcome = lora(alpha=alpha)
    assert outcome.code == 2
    assert "--alpha" in outcome.err


def test_a_model_is_never_overwritten(lora, gguf, tmp_path):
    copy = shutil.copy(gguf("llama"), tmp_path / "model.gguf")
    outcome = lora(model=copy, into=copy)
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert copy.read_bytes() == gguf("llama").read_bytes()


def test_a_folder_for_a_checkpoint_must_not_look_like_a_file(lora, checkpoint):
    outcome = lora(model=checkpoint("llama"))
    assert outcome.code == 2
    assert "let --into be a folder" in outcome.err


def test_a_set_of_another_model_is_refused(lora, gguf, checkpoint):
    for model, into in ((gguf("qwen2"), "a.gguf"), (checkpoint("qwen2"), "adapter")):
        outcome = lora(model=model, into=into)
        assert outcome.code == 2
        assert "belongs to" in outcome.err


def test_a_set_without_h_neurons_is_refused(lora, gguf, tmp_path):
    neuron_set(GGUFFile(gguf("llama")).identity, (1, 5, -2.0)).save(tmp_path / "none.json")
    outcome = lora(neurons="none.json")
    assert outcome.code == 2
    assert "none.json has no H-Neuron" in outcome.err


def test_a_quantized_checkpoint_is_refused_for_what_it_is(lora, packed, tmp_path):
    neuron_set(identity(packed("gptq-4")), (0, 3, 1.0)).save(tmp_path / "packed.json")
    for neurons in ("packed.json", "neurons.json"):
        outcome = lora(model=packed("gptq-4"), neurons=neurons, into="adapter")
        assert outcome.code == 2
        assert "is quantized" in outcome.err


def test_a_model_with_alpha_baked_in_is_refused(hq, lora, gguf, neurons, tmp_path):
    baked = hq("bake", "--alpha", "0.5", "--neurons", neurons, gguf("llama"), "baked.gguf")
    assert baked.code == 0, baked.err
    outcome = lora(model="baked.gguf")
    assert outcome.code == 2
    assert "baked in already" in outcome.err
    assert not (tmp_path / "a.gguf").exists()
