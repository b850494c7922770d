"""The monitor of a transformers model: the probe's own scores, whatever `generate` is asked for."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers as hf
from torch import nn

from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.loaded import dense_weight
from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from hq.monitor import LlamaMonitor, StepStreamer, TorchMonitor
from hq.neurons.neuron_set import NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.precisions.bitsandbytes import FourBit
from hq.tracing.sampling import StopCriteria
from tests import tiny
from tests.hq.monitored import PROMPT, asked, load, neuron_set, scores

Checkpoint = Callable[[str], Path]

ROOT = Path(__file__).parents[2]
ENDLESS = StopCriteria(frozenset(), (), lambda ids: "x" * len(ids))


def hooks(model: nn.Module) -> int:
    """Forward hooks of any kind on any module."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def traced(folder: Path, precision: str, neurons: NeuronSet, steps: Any) -> float:
    """The probe's value on a trace of the same tokens."""
    exchange = PromptResponse(PROMPT, tuple(step.token for step in steps))
    with TorchBackend(folder, precision, device="cpu") as backend:
        (batch,) = backend.trace([exchange], (neurons.cett,), (neurons.tokens,))
    return float(neurons.score(batch.features(neurons.cett, neurons.tokens))[0])


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Any:
    """The tiny llama."""
    return load(checkpoint("llama"))


@pytest.fixture
def neurons(checkpoint: Checkpoint) -> NeuronSet:
    """A set of the tiny llama."""
    return neuron_set(checkpoint_identity(checkpoint("llama")))


@pytest.fixture(autouse=True)
def _as_it_was(model: Any) -> Iterator[None]:
    """Whatever a test does, nothing of a monitor stays on the model."""
    yield
    assert hooks(model) == 0
    assert "generate" not in vars(model)


# --- scores


@pytest.mark.parametrize("cett", ["sum", "output"])
@pytest.mark.parametrize("tokens", ["answer", "prompt", "other"])
def test_the_live_score_is_the_probe_s_on_the_trace(model, checkpoint, cett, tokens):
    folder = checkpoint("llama")
    neurons = neuron_set(checkpoint_identity(folder), cett, tokens)
    with TorchMonitor(model, neurons) as monitor:
        out = model.generate(**asked(PROMPT))
    assert out[0, 4:-1].tolist() == [step.token for step in monitor.steps]
    assert len(monitor.steps) == 8  # the last token was never read
    assert monitor.steps[-1].score == pytest.approx(
        traced(folder, "fp16", neurons, monitor.steps), rel=1e-4
    )
    assert 0 < monitor.steps[-1].confidence < 1


@pytest.mark.parametrize("cett", ["sum", "output"])
def test_every_family_is_watched(family, checkpoint, cett):
    """GPT-2 stores weights the other way, and has biases; OPT flattens batch and sequence."""
    folder = checkpoint(family)
    model, who = load(folder), checkpoint_identity(folder)
    neurons = neuron_set(who, cett, "other")
    with TorchMonitor(model, neurons, who) as monitor:
        out = model.generate(**asked(PROMPT, (9, 10, 11, 12)))
    first, second = monitor.rows
    assert [len(first), len(second)] == [8, 8]
    assert out[0, 4:-1].tolist() == [step.token for step in first]
    assert first[-1].score == pytest.approx(traced(folder, "fp16", neurons, first), rel=1e-4)


@pytest.mark.parametrize("cett", ["sum", "output"])
@pytest.mark.parametrize("tokens", ["answer", "prompt", "other"])
def test_scores_are_llama_cpp_s(model, checkpoint, gguf, cett, tokens):
    pytest.importorskip("llama_cpp")
    from hq.backends.llamacpp.backend import LlamaBackend

    neurons = neuron_set(checkpoint_identity(checkpoint("llama")), cett, tokens)
    with LlamaBackend(gguf("llama"), "gguf-f32") as backend:
        with LlamaMonitor(backend, neurons) as other:
            expected = list(other.answer(PROMPT, ENDLESS, max_new_tokens=12))
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT, new=13))
    assert [step.token for step in monitor.steps] == [step.token for step in expected]
    ours, theirs = (np.array([step.cett for step in found]) for found in (monitor.steps, expected))
    off = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert off.max() <= 1e-5  # what the contract allows for the order of float sums
    np.testing.assert_allclose(scores(monitor.steps), scores(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "nf4", "nf4-dq", "fp4"])
def test_quantized_models_are_read_with_their_own_norms(checkpoint, precision):
    pytest.importorskip("bitsandbytes")
    folder = checkpoint("llama")
    four_bit = hf.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=precision.removesuffix("-dq"),
        bnb_4bit_use_double_quant=precision.endswith("-dq"),
        bnb_4bit_compute_dtype=torch.float32,
    )
    config = hf.BitsAndBytesConfig(load_in_8bit=True) if precision == "int8" else four_bit
    model = load(folder, quantization_config=config, device_map={"": "cpu"})
    for module in model.modules():  # where a CPU would repack the codes, and round to bfloat16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    neurons = neuron_set(checkpoint_identity(folder))
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT))
    rounding = 0.05 if precision == "int8" else 1e-4  # int8 rounds by batch
    expected = traced(folder, precision, neurons, monitor.steps)
    assert monitor.steps[-1].score == pytest.approx(expected, rel=rounding)
    with TorchMonitor(load(folder), neurons) as dense:
        dense._model.generate(**asked(PROMPT))
    assert dense.steps[0].token_score != monitor.steps[0].token_score


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_in_four_bits_are_read_with_double_quantization_too(kind, double):
    pytest.importorskip("bitsandbytes")
    weight = 0.02 * torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    layer = FourBit(kind, double).layer(weight)
    assert layer.weight.quant_state.nested == double
    off = (dense_weight(layer, "m") - weight).norm() / weight.norm()
    assert 0.05 < off < 0.25


@pytest.mark.parametrize("nested", [False, True])
def test_codes_that_a_cpu_has_repacked_are_still_read(checkpoint, nested):
    bnb = pytest.importorskip("bitsandbytes")
    config = hf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested
    )
    folder = checkpoint("llama")
    model = load(folder, quantization_config=config, device_map={"": "cpu"})
    neurons = neuron_set(checkpoint_identity(folder))
    before = TorchMonitor(model, neurons)
    with before:
        model.generate(**asked(PROMPT))
    (down, *_) = (m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit))
    if not getattr(down.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this machine: its CPU repacks nothing")
    after = TorchMonitor(model, neurons)
    assert down.weight.quant_state.packing_format_for_cpu, "the model itself was changed"
    with before, after:
        model.generate(**asked(PROMPT))
    first, second = (np.array([s.cett for s in m.steps]) for m in (before, after))
    np.testing.assert_allclose(second, first, rtol=0.005)  # block scales are bfloat16 by now


# --- what generate can be asked for


def test_padded_rows_read_as_if_alone(model, neurons, checkpoint):
    prompts = [PROMPT, (9, 10, 11, 12, 13, 14, 15), (16,)]
    for tokens in ("answer", "prompt", "other"):
        with TorchMonitor(model, neuron_set(neurons.model, tokens=tokens)) as monitor:
            model.generate(**asked(*prompts))
            together = [scores(row) for row in monitor.rows]
            for prompt, found in zip(prompts, together, strict=True):
                model.generate(**asked(prompt))
                np.testing.assert_allclose(found, scores(monitor.steps), rtol=1e-4)


def test_a_row_ends_with_its_end_token(model, neurons):
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT, (9, 10, 11, 12), new=12))
        free = [[step.token for step in row] for row in monitor.rows]
        end = next(token for token in free[0][2:] if token not in free[1])
        ended = free[0][: free[0].index(end)]
        for pad in (end, 0):
            out = model.generate(
                **asked(PROMPT, (9, 10, 11, 12), new=12, eos_token_id=end, pad_token_id=pad)
            )
            assert [step.token for step in monitor.rows[0]] == ended
            assert [step.token for step in monitor.rows[1]] == free[1]
            assert out[0, 4 + len(ended)] == end


def test_samples_of_one_prompt_are_rows(model, neurons):
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0}
    with TorchMonitor(model, neuron_set(neurons.model, tokens="other")) as monitor:
        out = model.generate(**asked(PROMPT, **options))
        assert [[s.token for s in row] for row in monitor.rows] == out[:, 4:-1].tolist()
        assert len({tuple(s.token for s in row) for row in monitor.rows}) > 1
    with pytest.raises(HQError, match="There are 3 answers: read `rows`"):
        _ = monitor.steps


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"cache_implementation": "static"},
        {"return_dict_in_generate": True, "output_scores": True},
        {"generation_config": hf.GenerationConfig(max_new_tokens=9)},
    ],
)
def test_other_ways_to_generate_change_nothing(model, neurons, options):
    for tokens in ("answer", "other"):
        with TorchMonitor(model, neuron_set(neurons.model, tokens=tokens)) as monitor:
            model.generate(**asked(PROMPT))
            expected = scores(monitor.steps)
            given = asked(PROMPT) | options
            if "generation_config" in options:
                del given["max_new_tokens"], given["do_sample"]
            model.generate(**given)
        np.testing.assert_allclose(scores(monitor.steps), expected, rtol=1e-4)


def test_a_conversation_goes_on_in_its_cache(model, neurons):
    with TorchMonitor(model, neurons) as monitor:
        out = model.generate(**asked(PROMPT, return_dict_in_generate=True))
        ids = (*out.sequences[0].tolist(), 20, 21)
        model.generate(**asked(ids))
        expected = scores(monitor.steps)
        model.generate(**asked(ids, cache=out.cache))
        np.testing.assert_allclose(scores(monitor.steps), expected, rtol=1e-4)


def test_a_whole_prompt_is_wanted_where_the_set_reads_it(model, neurons):
    given = asked(PROMPT)
    with TorchMonitor(model, neuron_set(neurons.model, tokens="other")) as monitor:
        with pytest.raises(HQError, match="reads the whole prompt: pass attention_mask"):
            model.generate(**given | {"attention_mask": None})
        out = model.generate(**asked(PROMPT, return_dict_in_generate=True))
        more = (*out.sequences[0].tolist(), 20, 21)
        with pytest.raises(HQError, match="no cache of an earlier text"):
            model.generate(**asked(more, cache=out.cache))
        assert len(monitor.rows) == 1


def test_prompts_padded_on_the_right_are_refused(model, neurons):
    given = asked(PROMPT, (9, 10))
    with TorchMonitor(model, neurons), pytest.raises(HQError, match="padding_side = 'left'"):
        model.generate(**given | {"attention_mask": given["attention_mask"].flip(1)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 2}, "not beam search"),
        ({"num_beams": 2, "do_sample": True}, "not beam sample"),
        ({"prompt_lookup_num_tokens": 2}, "not assisted generation"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "not contrastive search"),
        ({"custom_generate": lambda *_, **__: None}, "not custom generation"),
        ({"guidance_scale": 1.5}, "not classifier-free guidance"),
        ({"guidance_scale": 1.5, "use_cache": False}, "not classifier-free guidance"),
        (
            {"guidance_scale": 0.5, "negative_prompt_ids": torch.tensor([[9, 10]])},
            "not classifier-free guidance",
        ),
        (
            {"generation_config": hf.GenerationConfig(guidance_scale=2.0)},
            "not classifier-free guidance",
        ),
        ({"generation_config": hf.GenerationConfig(num_beams=3)}, "not beam search"),
    ],
)
def test_what_does_not_read_token_by_token_is_refused(model, neurons, options, words):
    with TorchMonitor(model, neurons), pytest.raises(HQError, match=words):
        model.generate(**asked(PROMPT) | options)


def test_continuous_batching_is_refused_while_a_monitor_is_open(model, neurons):
    with TorchMonitor(model, neurons), pytest.raises(HQError, match="call `generate`"):
        model.generate_batch([list(PROMPT)])
    assert "generate_batch" not in vars(model)


def test_an_assistant_is_refused(model, neurons):
    with TorchMonitor(model, neurons), pytest.raises(HQError, match="assisted generation"):
        model.generate(**asked(PROMPT), assistant_model=model)


def test_a_beam_of_the_model_s_own_defaults_is_refused(model, neurons, monkeypatch):
    monkeypatch.setattr(model.generation_config, "num_beams", 2)
    with TorchMonitor(model, neurons), pytest.raises(HQError, match="beam search"):
        model.generate(**asked(PROMPT))


def test_a_step_that_generate_gives_up_is_forgotten(model, neurons, monkeypatch):
    """On Apple's GPUs transformers stops a token late, and takes that token back."""
    from transformers.generation import utils

    class Event:
        def __init__(self, **_: object) -> None: ...
        def record(self) -> None: ...
        def synchronize(self) -> None: ...

    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT))
        tokens = [step.token for step in monitor.steps]
        monkeypatch.setattr(utils.DeferredStopCheck, "is_supported", lambda *_, **__: True)
        monkeypatch.setattr(torch, "Event", Event)
        out = model.generate(**asked(PROMPT, stopping_criteria=[monitor.stop_at(-1e9)]))
        kept = out[0, 4:].tolist()
        assert [step.token for step in monitor.steps] == kept == tokens[: len(kept)]


# --- acting on it


def test_an_answer_stops_at_a_threshold(model, neurons):
    prompts = (PROMPT, (9, 10, 11, 12))
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(*prompts, new=12))
        free = [scores(row) for row in monitor.rows]
        threshold = max(free[0])
        at = free[0].index(threshold)
        out = model.generate(
            **asked(PROMPT, new=12, stopping_criteria=[monitor.stop_at(threshold - 1e-5)])
        )
        assert out.shape[1] == 4 + at + 2  # the token that was read, and the one chosen after it
        assert len(monitor.steps) == at + 1
        model.generate(**asked(PROMPT, new=12, stopping_criteria=[monitor.stop_at(threshold + 1)]))
        assert len(monitor.steps) == 11


def test_only_rows_that_reach_it_stop(model, neurons):
    prompts = [(5 + i, 6 + 3 * i, 7) for i in range(8)]
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(*prompts, new=12))
        free = [[step.token for step in row] for row in monitor.rows]
        series = [scores(row) for row in monitor.rows]
        unused = next(t for t in range(tiny.VOCABULARY) if not any(t in row for row in free))
        threshold = float(np.median([max(row) for row in series]))
        reached = [next((i for i, s in enumerate(row) if s >= threshold), None) for row in series]
        model.generate(
            **asked(*prompts, new=12, eos_token_id=unused, pad_token_id=unused),
            stopping_criteria=[monitor.stop_at(threshold)],
        )
        for row, tokens, at in zip(monitor.rows, free, reached, strict=True):
            # The token that was chosen meanwhile is read beside the rows that go on.
            assert [step.token for step in row] == tokens[: None if at is None else at + 2]
    assert None in reached
    assert any(at is not None and at < 9 for at in reached)


def test_scaling_is_of_the_h_neurons_and_ends(model, neurons, checkpoint):
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT))
        plain = [step.cett for step in monitor.steps]
        with monitor.scale(0.0):
            model.generate(**asked(PROMPT))
            silenced = np.array([step.cett for step in monitor.steps])
        model.generate(**asked(PROMPT))
    np.testing.assert_array_equal([step.cett for step in monitor.steps], plain)
    assert (silenced[:, :2] == 0).all()  # the third has a negative weight
    assert (silenced[:, 2] > 0).all()
    with pytest.raises(HQError, match="must be 0 or more"), monitor.scale(-1):
        pass


# --- what is hooked


def test_only_layers_of_the_set_are_hooked_and_only_while_it_generates(model, neurons):
    seen: list[int] = []

    class Look(hf.LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(hooks(model))
            return scores

    with TorchMonitor(model, neurons):
        assert hooks(model) == 0
        model.generate(**asked(PROMPT, logits_processor=[Look()]))
        assert hooks(model) == 0
    assert set(seen) == {2}


def test_hooks_come_off_after_a_failure(model, neurons):
    class Fail(hf.LogitsProcessor):
        def __call__(self, input_ids, scores):
            assert hooks(model) == 2
            raise KeyError

    with TorchMonitor(model, neurons) as monitor:
        with pytest.raises(KeyError):
            model.generate(**asked(PROMPT, logits_processor=[Fail()]))
        assert hooks(model) == 0
        model.generate(**asked(PROMPT))
        assert len(monitor.steps) == 8
    with pytest.raises(KeyError), TorchMonitor(model, neurons):
        raise KeyError


def test_two_monitors_of_one_model_in_any_order(model, neurons):
    other = neuron_set(neurons.model, "output", "prompt")
    alone = []
    for which in (neurons, other):
        with TorchMonitor(model, which) as monitor:
            model.generate(**asked(PROMPT))
        alone.append(scores(monitor.steps))
    one, two = TorchMonitor(model, neurons), TorchMonitor(model, other)
    one.__enter__()
    two.__enter__()
    model.generate(**asked(PROMPT))
    assert [scores(one.steps), scores(two.steps)] == alone
    one.__exit__()
    model.generate(**asked((9, 10)))
    assert scores(one.steps) == alone[0]
    assert scores(two.steps) != alone[1]
    two.__exit__()


def test_monitors_of_two_models(model, neurons, checkpoint):
    qwen = load(checkpoint("qwen2"))
    others = neuron_set(checkpoint_identity(checkpoint("qwen2")))
    with TorchMonitor(model, neurons) as one, TorchMonitor(qwen, others) as two:
        model.generate(**asked(PROMPT))
        before = scores(one.steps)
        qwen.generate(**asked(PROMPT))
        assert scores(one.steps) == before != scores(two.steps)


def test_a_generate_that_someone_else_put_there_stays(checkpoint, neurons):
    model = load(checkpoint("llama"))
    inner, calls = model.generate, []

    def mine(*arguments, **options):
        calls.append(1)
        return inner(*arguments, **options)

    model.generate = mine
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT))
    assert len(monitor.steps) == 8
    assert calls == [1]
    assert model.generate is mine


def test_the_answer_is_the_same_with_and_without(model, neurons):
    plain = model.generate(**asked(PROMPT, (9, 10), new=20))
    with TorchMonitor(model, neurons):
        torch.testing.assert_close(model.generate(**asked(PROMPT, (9, 10), new=20)), plain)


def test_one_call_at_a_time(model, neurons):
    class Again(hf.LogitsProcessor):
        def __call__(self, input_ids, scores):
            model.generate(**asked(PROMPT))

    with TorchMonitor(model, neurons) as monitor:
        with pytest.raises(HQError, match="generates already"):
            model.generate(**asked(PROMPT, logits_processor=[Again()]))
        model.generate(**asked(PROMPT))
        assert len(monitor.steps) == 8


def test_a_layer_that_is_not_met_is_said(model, neurons, monkeypatch):
    monkeypatch.setattr(model.model.layers[2].mlp, "forward", lambda x: x)
    with TorchMonitor(model, neurons), pytest.raises(HQError, match="layer 2 was not called"):
        model.generate(**asked(PROMPT))


def test_activations_that_are_not_finite_are_refused(checkpoint, neurons):
    model = load(checkpoint("llama"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(3e38)
    with TorchMonitor(model, neurons), pytest.raises(HQError, match="NaN or infinite"):
        model.generate(**asked(PROMPT))


def test_nothing_of_a_pass_is_kept(model, neurons):
    process = psutil.Process()
    with TorchMonitor(model, neurons) as monitor:

        def read(answers: int) -> None:
            for _ in range(answers):
                model.generate(**asked(PROMPT, new=100))
                assert len(monitor.steps) == 99

        read(2)
        gc.collect()
        before = process.memory_info().rss
        read(5)
        gc.collect()
        assert process.memory_info().rss - before < 4 << 20
        assert [p.read for p in monitor._hooks._passes] == [[], []]
        kept = sum(step.cett.nbytes for step in monitor.steps)
        assert kept == 99 * 3 * 4
        assert {step.cett.base is None for step in monitor.steps} == {True}


@pytest.mark.slow
def test_the_embedded_model_as_its_user_loads_it():
    from harness.models.sources import resolve_model

    folder = resolve_model("smollm2")
    neurons = NeuronSet.load(ROOT / "results" / "smollm2-triviaqa" / "neurons.json")
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with TorchMonitor(model, neurons) as monitor:
        stream = StepStreamer(monitor, tokenizer)
        model.generate(**inputs, max_new_tokens=24, do_sample=False, streamer=stream)
        text = "".join(piece for piece, _ in stream)
    assert text == "The capital of France is Paris."
    response = tuple(step.token for step in monitor.steps)
    exchange = PromptResponse(tuple(inputs["input_ids"][0].tolist()), response)
    with TorchBackend(folder, device="cpu") as backend:
        (batch,) = backend.trace([exchange], (neurons.cett,), (neurons.tokens,))
    expected = neurons.score(batch.features(neurons.cett, neurons.tokens))[0]
    assert monitor.steps[-1].score == pytest.approx(expected, rel=1e-4)
