"""The Python API: what texts become, what is checked, and that both engines agree."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import hq
from hq.models.checkpoint import checkpoint_identity
from hq.monitor import TorchMonitor
from hq.tracing.sampling import StopCriteria
from tests import chat_templates, decoders, tiny, tiny_tokenizers
from tests.hq.monitored import asked, load, neuron_set, scores

VOCABULARY = 320
IDS = (5, 6, 7, 8)
PAIRS = [(exchange.prompt, exchange.response) for exchange in tiny.exchanges()]
PROMPTS, ANSWERS = map(list, zip(*PAIRS, strict=True))
MESSAGES = [{"role": "user", "content": "who <|im_end|> wrote it"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Adds <s> to every text, and has a chat template."""
    special = (*tiny_tokenizers.SPECIAL, "<|im_start|>", "<|im_end|>")
    made = tiny_tokenizers.byte_level(VOCABULARY, special=special)
    made.chat_template = chat_templates.CHATML
    return made


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with that tokenizer; read only."""
    path = tmp_path_factory.mktemp("api") / "llama"
    tiny.model("llama", vocab_size=VOCABULARY).half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    with hq.load(folder, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def wrapped(folder: Path, tokenizer: Any) -> hq.Model:
    return hq.wrap(load(folder), tokenizer)


@pytest.fixture
def neurons(folder: Path) -> hq.NeuronSet:
    return neuron_set(checkpoint_identity(folder))


# --- importing


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout


def test_importing_hq_imports_nothing_heavy():
    code = (
        "import sys; before = set(sys.modules); import hq; new = set(sys.modules) - before;"
        "print({name.partition('.')[0] for name in new} - set(sys.stdlib_module_names))"
    )
    assert run(code).strip() == "{'hq'}"


def test_every_name_is_there_and_listed():
    assert set(hq.__all__) <= set(dir(hq))
    assert hq._MODULE_OF.keys() == set(hq.__all__)
    for name in hq.__all__:
        assert getattr(hq, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = hq.lode


# --- texts


def test_a_plain_text_is_encoded_as_written(model, tokenizer):
    text = "the LICENSE <|im_start|>"
    ids = model.encode(text)
    assert list(ids) == tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert model.encode(list(ids)) == model.encode(np.array(ids)) == ids


def test_messages_go_through_the_template_and_their_special_tokens_are_letters(model, tokenizer):
    plain = [{"role": "user", "content": "who wrote it"}]
    expected = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert list(model.encode(plain)) == tokenizer(expected, add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.encode(MESSAGES).count(end) == 1


def test_an_answer_is_encoded_by_itself(model, tokenizer):
    ids = tokenizer(" the work", add_special_tokens=False)["input_ids"]
    assert list(model.encode_answer(" the work")) == ids
    texts = model.trace(["Q: a\nA:"], [" the work"])
    same = model.trace([model.encode("Q: a\nA:")], [ids])
    np.testing.assert_array_equal(texts.values, same.values)


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ("one", ["two"], "prompts is a single one"),
        ([5, 6], [[7]], "prompts is a single one"),
        ([[5]], "two", "answers is a single one"),
        ([[5], [6]], [[7]], "2 prompts and 1 answers"),
        ([], [], "0 prompts"),
        ([[]], [[7]], "A prompt is empty"),
        ([[5]], [""], "An answer is empty"),
        ([[5.5]], [[7]], "neither a text nor"),
        ([[5]], [[VOCABULARY]], "token id outside"),
    ],
)
def test_what_is_no_prompt_or_answer_is_named(model, prompts, answers, message):
    with pytest.raises(hq.HQError, match=message) as error:
        model.trace(prompts, answers)
    assert "\n" not in str(error.value)


def test_without_a_tokenizer_ids_still_work(folder):
    bare = hq.wrap(load(folder))
    assert len(bare.trace(PROMPTS, ANSWERS)) == len(PROMPTS)
    with pytest.raises(hq.HQError, match="wrapped without a tokenizer"):
        bare.trace(["a"], ["b"])


# --- loading


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("gguf-q8_0", "is of GGUF files"),
        ("nf5", "no precision 'nf5': did you mean 'nf4'"),
        ("gptq-4", "needs a packed checkpoint, and .* is dense"),
        ("awq-4-native", "needs a packed checkpoint"),
    ],
)
def test_a_precision_that_a_checkpoint_has_not_is_named(folder, precision, message):
    with pytest.raises(hq.HQError, match=message) as error:
        hq.load(folder, precision, device="cpu")
    assert "\n" not in str(error.value)


def test_a_gguf_file_has_its_own_precision(gguf):
    path = gguf("llama", "q8_0")
    with hq.load(path, device="cpu") as own, hq.load(path, "gguf-q8_0", device="cpu") as named:
        assert (own.precision, named.precision) == ("gguf-source", "gguf-q8_0")
    with pytest.raises(hq.HQError, match="does not run at nf4: leave out `precision`"):
        hq.load(path, "nf4")
    with pytest.raises(hq.HQError, match="name the precision that it has, not gguf-q4_0"):
        hq.load(path, "gguf-q4_0", device="cpu")


def test_a_model_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(hq.HQError, match=r"no config\.json"):
        hq.load(tmp_path)
    with pytest.raises(hq.HQError, match=r"none\.gguf"):
        hq.load(tmp_path / "none.gguf")


# --- a wrapped model


@pytest.mark.parametrize("measure", ["sum", "output", "contribution"])
@pytest.mark.parametrize("span", ["answer", "prompt", "other"])
def test_a_wrapped_model_is_traced_as_its_checkpoint(model, wrapped, measure, span):
    one, other = (m.trace(PROMPTS, ANSWERS, measure=measure, span=span) for m in (model, wrapped))
    np.testing.assert_allclose(one.values, other.values, rtol=1e-4, atol=1e-7)
    assert (other.measure, other.span, other.precision) == (measure, span, "float32")
    assert wrapped.identity.norm_digest == model.identity.norm_digest


def test_a_wrapped_model_is_scaled_and_generates(model, wrapped, neurons):
    def answers(of: hq.Model) -> list[str]:
        return [of.generate(p, max_new_tokens=6) for p in PROMPTS[:3]]

    assert answers(wrapped) == answers(model)
    own = wrapped.backend.model
    before = own(torch.tensor([IDS])).logits
    with wrapped.scale(neurons, 0.0):
        scaled = own(torch.tensor([IDS])).logits
        with model.scale(neurons, 0.0):
            assert answers(wrapped) == answers(model)
    assert not torch.equal(before, scaled)
    assert torch.equal(own(torch.tensor([IDS])).logits, before)


def test_a_wrapped_model_of_bitsandbytes_is_traced_as_that_precision(folder):
    quantized = load(
        folder,
        quantization_config=hf.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    )
    mine = hq.wrap(quantized, model_identity=checkpoint_identity(folder))
    assert mine.precision == "nf4"
    with hq.load(folder, "nf4", device="cpu") as own:
        expected = own.trace(PROMPTS, ANSWERS).values
    # bitsandbytes rounds block scales of a model that it repacks for AVX512-BF16.
    found = mine.trace(PROMPTS, ANSWERS).values
    assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected)


def test_a_wrapped_model_in_training_mode_is_rejected(folder):
    with pytest.raises(hq.HQError, match=r"training mode.*model\.eval\(\)"):
        hq.wrap(load(folder).train())


def test_layers_of_different_widths_are_wrapped():
    ragged = decoders.model(decoders.RAGGED["gemma3n_text"]())
    who = hq.ModelIdentity.of(
        "tiny", "f", "gemma3n_text", hq.NeuronSpace.of_widths([128, 128, 256, 256]), ""
    )
    model = hq.wrap(ragged, model_identity=who)
    traces = model.trace(PROMPTS, ANSWERS)
    assert traces.values.shape == (len(PROMPTS), 768)
    np.testing.assert_allclose(traces.values.sum(axis=1), 4, rtol=1e-4)


# --- identify and score


def labelled(model: hq.Model) -> tuple[hq.Features, np.ndarray]:
    texts = tiny.exchanges(60, seed=1)
    traces = model.trace([e.prompt for e in texts], [e.response for e in texts])
    return traces, traces.values[:, 200] > np.median(traces.values[:, 200])


def test_identify_finds_the_neuron_and_sets_a_threshold(model):
    traces, labels = labelled(model)
    found = hq.identify(traces, labels, groups=np.arange(60) // 2, folds=3, max_fraction=0.02)
    assert 200 in found.flat_positive
    assert found.provenance["precision"] == "fp16"
    assert found.provenance["folds"] == 3
    threshold = found.thresholds["youden"]
    right = (found.score(traces) >= threshold) == labels
    assert right.mean() > 0.8
    again = hq.identify(traces, labels, groups=np.arange(60) // 2, folds=3, max_fraction=0.02)
    assert again == found


def with_value(labels: np.ndarray, value: object) -> list[object]:
    return [value, *labels.tolist()[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: {"labels": np.ones(60)}, "All 60 labels are 1"),
        (lambda y: {"labels": y[:50]}, r"shape \(50,\), but 60 responses"),
        (lambda y: {"labels": with_value(y, np.nan)}, "Label 0 is nan"),
        (lambda y: {"labels": with_value(y, 2)}, "Label 0 is 2"),
        (lambda y: {"labels": ["right"] * 60}, "of type <U5"),
        (lambda y: {"labels": y[:, None]}, r"shape \(60, 1\)"),
        (lambda y: {"groups": np.arange(50)}, r"groups have shape \(50,\)"),
        (lambda y: {"groups": [None, *range(59)]}, "Response 0 has no group"),
        (lambda y: {"groups": np.zeros(60)}, "1 groups of hallucinated responses for 5 folds"),
    ],
)
def test_labels_and_groups_are_validated(model, change, message):
    traces, labels = labelled(model)
    given = {"labels": labels} | change(labels)
    with pytest.raises(hq.HQError, match=message) as error:
        hq.identify(traces, **given)
    assert "\n" not in str(error.value)


def test_score_rejects_what_the_set_was_not_found_on(model, neurons):
    assert len(neurons.score(model.trace(PROMPTS, ANSWERS))) == len(PROMPTS)
    with pytest.raises(hq.HQError, match="found on sum over the answer span"):
        neurons.score(model.trace(PROMPTS, ANSWERS, measure="output"))
    with pytest.raises(hq.HQError, match="these traces are sum over the prompt span"):
        neurons.score(model.trace(PROMPTS, ANSWERS, span="prompt"))
    other = neurons.model.model_copy(update={"fingerprint": "f" * 16, "norm_digest": "0" * 16})
    with pytest.raises(hq.HQError, match="belongs to"):
        neuron_set(other).score(model.trace(PROMPTS, ANSWERS))
    with pytest.raises(hq.HQError, match="belongs to"):
        model.scale(neuron_set(other), 0.5)
    with pytest.raises(hq.HQError, match="belongs to"):
        hq.Monitor(model, neuron_set(other))


def test_a_set_without_positive_weights_scales_nothing(model, neurons):
    negative = [n.model_copy(update={"weight": -1.0}) for n in neurons.neurons]
    with pytest.raises(hq.HQError, match="no neuron with a positive weight"):
        model.scale(neurons.model_copy(update={"neurons": tuple(negative)}), 0.5)


# --- generate and monitor, on either engine


@pytest.fixture(scope="module", params=["torch", "llamacpp"])
def engine(request: pytest.FixtureRequest, gguf: Callable[..., Path], checkpoint: Any) -> Any:
    """The same tiny llama on each engine; it has its own tokenizer."""
    path = checkpoint("llama") if request.param == "torch" else gguf("llama")
    with hq.load(path, device="cpu") as opened:
        own = tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False)
        opened.__dict__.update(tokenizer=own, ends=frozenset())
        yield opened


def of_engine(engine: hq.Model, cett: str = "sum", tokens: str = "answer") -> hq.NeuronSet:
    return neuron_set(engine.identity, cett, tokens)


@pytest.mark.parametrize("cett", ["sum", "output"])
@pytest.mark.parametrize("tokens", ["answer", "prompt", "other"])
def test_the_monitor_s_score_is_that_of_the_trace(engine, cett, tokens):
    neurons = of_engine(engine, cett, tokens)
    with hq.Monitor(engine, neurons) as monitor:
        steps = list(monitor.answer(IDS, max_new_tokens=7))
        ids = [step.token for step in steps]
        traces = engine.trace([IDS], [ids], measure=cett, span=tokens)
        assert monitor.score == pytest.approx(float(neurons.score(traces)[0]), rel=1e-3)
        assert monitor.steps == tuple(steps)
        assert len(ids) == 7
        followed = list(monitor.follow(IDS, ids))
        assert scores(followed) == pytest.approx(scores(steps), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_monitor_answers_as_generate_does(engine, temperature):
    settings = {"max_new_tokens": 8, "temperature": temperature, "seed": 3}
    text = engine.generate(IDS, **settings)
    with hq.Monitor(engine, of_engine(engine)) as monitor:
        assert monitor.text == ""
        with pytest.raises(hq.HQError, match="No token was read"):
            _ = monitor.score
        for _ in monitor.answer(IDS, **settings):
            pass
        assert monitor.text == text
        if temperature:
            others = {engine.generate(IDS, **settings | {"seed": seed}) for seed in range(5)}
            assert len(others) > 1


def test_a_stop_string_and_a_score_end_the_answer(engine):
    neurons = of_engine(engine)
    with hq.Monitor(engine, neurons) as monitor:
        free = list(monitor.answer(IDS, max_new_tokens=8))
        cut = engine.decode([step.token for step in free[:4]])
        text = engine.generate(IDS, max_new_tokens=8, stop=[cut[-1:]])
        assert cut[-1:] not in text
        list(monitor.answer(IDS, max_new_tokens=8, stop=[cut[-1:]]))
        assert monitor.text == text
        highest = max(scores(free))
        ended = list(monitor.answer(IDS, max_new_tokens=8, stop_at=highest - 1e-9))
        assert len(ended) == 1 + int(np.argmax(scores(free)))
    with pytest.raises(hq.HQError, match="pass a list of strings"):
        engine.generate(IDS, stop="\n")


def test_a_scaled_answer_is_followed_as_the_model_itself_reads_it(engine):
    neurons = of_engine(engine)
    with hq.Monitor(engine, neurons) as monitor:
        plain = list(monitor.answer(IDS, max_new_tokens=6))
        with monitor.scale(4.0):
            scaled = list(monitor.answer(IDS, max_new_tokens=6))
        assert scores(scaled) != pytest.approx(scores(plain), rel=1e-3)
        ids = [step.token for step in scaled]
        followed = list(monitor.follow(IDS, ids))
        traces = engine.trace([IDS], [ids])
        assert followed[-1].score == pytest.approx(float(neurons.score(traces)[0]), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"max_new_tokens": 5000}, "max_position_embeddings|do not fit|longer than"),
    ],
)
def test_settings_out_of_range_are_named(engine, settings, message):
    with hq.Monitor(engine, of_engine(engine)) as monitor:
        with pytest.raises(hq.HQError, match=message):
            list(monitor.answer(IDS, **settings))


def test_between_steps_no_hook_is_on_the_model(model, neurons):
    own = model.backend.model
    with hq.Monitor(model, neurons) as monitor:
        answer = monitor.answer(IDS, max_new_tokens=3)
        first = next(answer)
        assert not any(m._forward_hooks for m in own.modules())
        own(torch.tensor([IDS]))  # is not taken for a step
        rest = list(answer)
        assert scores([first, *rest]) == scores(monitor.answer(IDS, max_new_tokens=3))


def test_answers_and_the_model_s_own_generate_agree(folder, neurons):
    own = load(folder)
    with TorchMonitor(own, neurons) as monitor:
        out = own.generate(**asked(IDS, new=8))
        recorded = scores(monitor.steps)
        ending = StopCriteria(frozenset(), (), lambda ids: "")
        steps = list(monitor.answer(IDS, ending, max_new_tokens=7))
    assert [step.token for step in steps] == out[0, len(IDS) : -1].tolist()
    assert scores(steps) == pytest.approx(recorded, rel=1e-4)


def test_the_monitor_records_the_model_s_own_generate(wrapped, neurons):
    with hq.Monitor(wrapped, neurons) as monitor:
        wrapped.backend.model.generate(**asked(IDS, new=5))
        assert len(monitor.engine.steps) == 4


@pytest.mark.parametrize("precision", ["nf4", "torchao-int8", "gptq-4"])
def test_models_of_every_kind_of_weight_are_monitored(precision, checkpoint, packed):
    """Norms come from the backend, which alone can dequantize torchao's weights."""
    path = packed(precision) if precision == "gptq-4" else checkpoint("llama")
    with hq.load(path, precision, device="cpu") as opened:
        own = tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False)
        opened.__dict__.update(tokenizer=own, ends=frozenset())
        neurons = of_engine(opened)
        with hq.Monitor(opened, neurons) as monitor:
            ids = [step.token for step in monitor.answer(IDS, max_new_tokens=6)]
            expected = float(neurons.score(opened.trace([IDS], [ids]))[0])
            assert monitor.score == pytest.approx(expected, rel=1e-3)
