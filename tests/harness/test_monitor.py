"""`hq monitor`: coloured text, JSON lines and rejected input."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from harness.models.gguf_tokenizer import GGUFTokenizer
from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.models.encoding import render_chat
from hq.monitor.bundle import Domain
from hq.neurons.neuron_set import Neuron, NeuronSet
from tests import bundles, tiny

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def neurons(gguf, tmp_path_factory):
    """A NeuronSet file with two neurons of the tiny llama."""
    identity = GGUFFile(gguf("llama")).identity
    path = tmp_path_factory.mktemp("neurons") / "neurons.json"
    NeuronSet(
        model=identity,
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
    ).save(path)
    return path


@pytest.fixture
def ask(hq, gguf, neurons):
    """`hq monitor` on the tiny llama, whose context is shorter than a few-shot prompt."""

    def call(*arguments, **changed):
        options = {"gguf": gguf("llama"), "neurons": neurons, "form": "few-shot"} | changed
        named = [p for name, value in options.items() if value for p in (f"--{name}", value)]
        return hq("monitor", "a", "--threads", 1, *named, *arguments)

    return call


@pytest.fixture(scope="module")
def bundle(long_context, neurons, tmp_path_factory):
    """A bundle of the two neurons: one domain flags everything, the other nothing."""
    domains = {
        "all": Domain(threshold=-1e9, false_alarms=0.1, n=30),
        "capital": Domain(threshold=1e9, false_alarms=0.1, n=30),
    }
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return bundles.save(folder, long_context, NeuronSet.load(neurons), domains)


@pytest.fixture(scope="module")
def long_context(gguf, tmp_path_factory):
    """The tiny llama with a context length that fits the few-shot prompt."""
    path = tmp_path_factory.mktemp("long") / "llama.gguf"
    raw = gguf("llama").read_bytes()
    key = b"llama.context_length"
    at = raw.index(key) + len(key) + 4
    path.write_bytes(raw[:at] + (2048).to_bytes(4, "little") + raw[at + 4 :])
    return path


def test_an_answer_with_its_score_and_verdict(ask, long_context):
    outcome = ask("--max-new-tokens", 5, gguf=long_context)
    assert outcome.code == 0, outcome
    verdict = outcome.out.splitlines()[-1]
    assert re.fullmatch(
        r"(no )?hallucination: score [+-]\d\.\d\d, threshold \+0\.00, confidence \d+%", verdict
    )


def test_lines_for_machines(ask, long_context):
    outcome = ask("--json", "--max-new-tokens", 5, gguf=long_context)
    assert outcome.code == 0, outcome
    *steps, verdict = map(json.loads, outcome.out.splitlines())
    assert verdict["tokens"] == len(steps) > 0
    assert verdict["score"] == steps[-1]["score"]
    assert verdict["score"] == pytest.approx(np.mean([step["token_score"] for step in steps]))
    assert (verdict["verdict"] == "hallucination") == (verdict["score"] >= verdict["threshold"])


def test_alpha_changes_the_scores(ask, long_context):
    scores = [
        json.loads(ask("--json", "--alpha", alpha, gguf=long_context).out.splitlines()[0])
        for alpha in (0, 1, 3)
    ]
    assert len({step["token_score"] for step in scores}) == 3


def test_a_bundle_has_its_own_threshold(ask, long_context, bundle):
    """The threshold is the domain's; the prompt form is the bundle's."""
    verdicts = {}
    for domain in ("all", "capital"):
        outcome = ask(
            *("--json", "--max-new-tokens", 5, "--bundle", bundle, "--domain", domain),
            gguf=long_context,
            neurons=None,
            form=None,
        )
        assert outcome.code == 0, outcome
        verdicts[domain] = json.loads(outcome.out.splitlines()[-1])
    assert [v["verdict"] for v in verdicts.values()] == ["hallucination", "no hallucination"]
    assert [v["threshold"] for v in verdicts.values()] == [-1e9, 1e9]
    of_set = ask("--json", "--max-new-tokens", 5, gguf=long_context)
    assert json.loads(of_set.out.splitlines()[-1])["score"] == verdicts["all"]["score"]


def test_a_bundle_is_used_with_the_attention_that_it_was_made_with(
    ask, long_context, neurons, tmp_path
):
    domains = {"all": Domain(threshold=0.0, false_alarms=0.1, n=30)}
    flash = NeuronSet.load(neurons), domains, "gguf-f32+fa"
    folder = bundles.save(tmp_path / "flash", long_context, *flash)
    fixed = {"gguf": long_context, "form": None}

    def score(**options):
        outcome = ask("--json", "--max-new-tokens", 5, **fixed, **options)
        assert outcome.code == 0, outcome
        return json.loads(outcome.out.splitlines()[-1])["score"]

    by_bundle = score(neurons=None, bundle=folder)
    assert by_bundle == score(precision="gguf-source+fa")
    assert by_bundle != score()  # in float32
    outcome = ask(neurons=None, bundle=folder, precision="gguf-f32", **fixed)
    assert outcome.code == 2
    assert "was validated with flash attention, K f16, V f16" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err


def test_a_bundle_is_for_its_file(ask, bundle, gguf):
    outcome = ask("--bundle", bundle, neurons=None, gguf=gguf("llama"))
    assert outcome.code == 2
    assert "another file of that model" in outcome.err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"neurons": None}, "either --neurons or --bundle"),
        ({"bundle": "nowhere"}, "either --neurons or --bundle"),
        ({"bundle": "nowhere", "neurons": None}, "nowhere cannot be read"),
    ],
)
def test_exactly_one_source_of_neurons_is_required(changed, words, ask, long_context):
    outcome = ask(**{"gguf": long_context} | changed)
    assert outcome.code == 2, outcome
    assert words in outcome.err


def test_an_unknown_domain_of_the_bundle(ask, long_context, bundle):
    outcome = ask("--bundle", bundle, "--domain", "sport", neurons=None, gguf=long_context)
    assert outcome.code == 2
    assert "no domain 'sport': it has all, capital" in outcome.err


def test_a_set_without_a_threshold_is_rejected(ask, long_context, neurons, tmp_path):
    NeuronSet.load(neurons).model_copy(update={"thresholds": {}}).save(tmp_path / "bare.json")
    outcome = ask(gguf=long_context, neurons=tmp_path / "bare.json")
    assert outcome.code == 2
    assert "has no threshold" in outcome.err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gguf": "nowhere.gguf"}, "nowhere.gguf"),
        ({"gguf": "model"}, "is not a GGUF file"),
        ({"neurons": "nowhere.json"}, "nowhere.json"),
        ({"form": "chat"}, "no chat template"),
        ({"form": "few"}, "no prompt form 'few'"),
        ({}, "longer than the context"),
    ],
)
def test_bad_input_is_one_sentence(changed, words, ask):
    outcome = ask(**changed)
    assert outcome.code == 2, outcome
    assert outcome.out.strip() == ""
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err


def test_a_set_of_another_model_is_rejected(ask, gguf):
    outcome = ask(gguf=gguf("qwen2"))
    assert outcome.code == 2
    assert "belongs to" in outcome.err


def test_a_truncated_file_is_rejected(ask, gguf, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf("llama").read_bytes()[:-100])
    outcome = ask(gguf=path)
    assert outcome.code == 2
    assert "cut.gguf" in outcome.err


def test_the_tokenizer_of_a_file_is_that_of_its_checkpoint(gguf):
    from transformers import AutoTokenizer

    path = gguf("llama")
    theirs = AutoTokenizer.from_pretrained(path.with_suffix(""))
    with LlamaBackend(path, "gguf-f32") as backend:
        ours = GGUFTokenizer(backend.file, backend.model)
        for text in ("Q: what is it?\nA:", "  two spaces", "don't"):
            ids = ours(text)["input_ids"]
            assert ids == theirs(text)["input_ids"]
            assert ours.decode(ids) == theirs.decode(ids)
        assert theirs.eos_token_id in ours.eos_token_id


def test_a_chat_template_is_rendered_as_transformers_does(gguf, monkeypatch):
    from transformers import AutoTokenizer

    path = gguf("llama")
    theirs = AutoTokenizer.from_pretrained(path.with_suffix(""))
    theirs.chat_template = CHAT
    messages = [{"role": "user", "content": "hello"}]
    with LlamaBackend(path, "gguf-f32") as backend:
        ours = GGUFTokenizer(backend.file, backend.model)
        for source, words in ((CHAT, None), ("{{ raise_exception('no') }}", "rendered")):
            monkeypatch.setattr(GGUFTokenizer, "chat_template", source)
            if words is None:
                expected = theirs.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
                assert render_chat(ours, messages, add_generation_prompt=True) == expected
            else:
                with pytest.raises(HQError, match=words):
                    render_chat(ours, messages)


def test_the_tiny_model_is_left_alone(gguf):
    """The shared files have nothing next to them but their cached norms."""
    beside = {path.name for path in gguf("llama").parent.iterdir() if path.is_file()}
    assert all(name.endswith((".gguf", ".gguf.hq.safetensors")) for name in beside)
    assert GGUFFile(gguf("llama")).n_layers == tiny.LAYERS
