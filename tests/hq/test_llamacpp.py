"""The llama.cpp backend: parity with transformers, its callback, and lifetimes of its objects."""

import gc
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from gguf import GGUFReader

pytest.importorskip("llama_cpp")

from hq.backends.base import Backend
from hq.backends.llamacpp.backend import LlamaBackend
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.llamacpp import library as library_module
from hq.llamacpp.graph import GraphNodeFinder
from hq.llamacpp.model import LlamaModel
from hq.monitor import LlamaMonitor
from hq.neurons.cett import MEASURES, SPANS
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.tracing.sampling import Sampling, StopCriteria, sample
from tests import tiny
from tests.outputs import logits, off

GGUF = Callable[..., Path]
ROOT = Path(__file__).parents[2]
ENDLESS = StopCriteria(frozenset(), (), lambda ids: "x" * len(ids))


@pytest.fixture(scope="module")
def backend(gguf: GGUF) -> Iterator[LlamaBackend]:
    """The tiny llama in F32."""
    with LlamaBackend(gguf("llama"), "gguf-f32") as opened:
        yield opened


def trace(backend: Backend, exchanges: list[PromptResponse]) -> np.ndarray:
    """[n, measure, span, layer, d_ff]."""
    values = np.empty((len(exchanges), len(MEASURES), len(SPANS), tiny.LAYERS, tiny.D_FF))
    for batch in backend.trace(exchanges, MEASURES, SPANS):
        values[batch.rows] = batch.values.reshape(-1, *values.shape[1:])
    return values


# --- parity


# ggml takes GELU from a table in FP16, so Gemma's products agree to that and no further.
GELU = {"h": 1e-3, "cett": 1e-3, "logits": 5e-3}
EXACT = {"h": 1e-5, "cett": 1e-4, "logits": 1e-3}


@pytest.mark.parametrize(
    ("family", "limit"),
    [
        *((family, EXACT) for family in ("llama", "mistral", "qwen2", "qwen3")),
        *((family, GELU) for family in ("gemma2", "gemma3_text", "gemma3")),
    ],
)
@pytest.mark.parametrize("factors", [{}, {(0, 3): 0.0, (1, 5): 0.5, (1, 90): 0.3, (2, 7): 2.0}])
def test_an_f32_file_computes_what_transformers_does(family, limit, factors, gguf):
    path = gguf(family)
    exchanges = tiny.exchanges()
    with (
        TorchBackend(path.with_suffix(""), device="cpu") as torch_backend,
        LlamaBackend(path, "gguf-f32") as llama_backend,
        torch_backend.scale(factors),
        llama_backend.scale(factors),
    ):
        contribution = MEASURES.index("contribution")
        expected, actual = trace(torch_backend, exchanges), trace(llama_backend, exchanges)
        assert off(actual[:, contribution], expected[:, contribution]) <= limit["h"]
        assert off(actual, expected) <= limit["cett"]
        assert (
            np.abs(logits(llama_backend, exchanges) - logits(torch_backend, exchanges)).max()
            <= limit["logits"]
        )
        np.testing.assert_allclose(llama_backend.norms, torch_backend.norms, rtol=1e-6)


@pytest.mark.slow
def test_the_embedded_model_computes_what_transformers_does(tmp_path):
    from harness.bench.cett import question_texts
    from harness.models.sources import resolve_model
    from hq.gguf.write import write_gguf
    from hq.models.checkpoint import checkpoint_identity

    path = resolve_model("smollm2")
    write_gguf(path, tmp_path / "model.gguf", "f32", checkpoint_identity(path))
    factors = {(10, 1275): 0.0, (11, 1158): 0.3, (20, 703): 0.5, (0, 5): 2.0}
    with (
        TorchBackend(path, device="cpu") as torch_backend,
        LlamaBackend(tmp_path / "model.gguf", "gguf-f32") as llama_backend,
    ):
        texts = question_texts(torch_backend, seed=0, count=16)[1]
        for scaled in ({}, factors):
            with torch_backend.scale(scaled), llama_backend.scale(scaled):
                expected, actual = (
                    _every_row(b.trace(texts, MEASURES), len(texts))
                    for b in (torch_backend, llama_backend)
                )
                assert off(actual, expected) <= 1e-5
                assert (
                    np.abs(logits(llama_backend, texts) - logits(torch_backend, texts)).max()
                    <= 1e-3
                )


def _every_row(batches, count):
    values: list[np.ndarray] = [np.empty(0)] * count
    for batch in batches:
        for row, value in zip(batch.rows, batch.values, strict=True):
            values[row] = value
    return np.stack(values)


def test_samples_are_those_of_torch(gguf):
    path = gguf("llama")
    settings = Sampling(responses=5, temperature=1.0, max_new_tokens=6, seed=1)
    prompts = [("a", (5, 6, 7)), ("b", (5, 6, 8)), ("c", (5, 9, 9))]
    with (
        TorchBackend(path.with_suffix(""), device="cpu") as torch_backend,
        LlamaBackend(path, "gguf-f32") as llama_backend,
    ):
        expected, actual = (
            [tree.finished for tree in sample(b.decoding(), prompts, settings, ENDLESS)]
            for b in (torch_backend, llama_backend)
        )
    assert actual == expected


# --- the callback


def test_memory_outside_the_host_is_copied_in_and_out(backend, monkeypatch):
    exchanges = tiny.exchanges()
    factors = {(1, 5): 0.5, (2, 7): 2.0}
    with backend.scale(factors):
        expected = trace(backend, exchanges), logits(backend, exchanges)
    monkeypatch.setattr(backend.model, "on_host", False)
    with backend.scale(factors):
        np.testing.assert_array_equal(trace(backend, exchanges), expected[0])
        np.testing.assert_array_equal(logits(backend, exchanges), expected[1])


def test_alpha_may_change_between_tokens(backend):
    decoding = backend.decoding()
    decoding.start([(5, 6, 7)])
    everything = {(0, i): 0.0 for i in range(tiny.D_FF)}
    with backend.scale(everything):
        silenced = decoding.step(np.array([0]), np.array([8])).numpy()
    fresh = backend.decoding()
    fresh.start([(5, 6, 7)])
    plain = fresh.step(np.array([0]), np.array([8])).numpy()
    assert np.abs(silenced - plain).max() > 1e-2
    again = decoding.step(np.array([0]), np.array([9])).numpy()
    with backend.scale(everything):
        still = fresh.step(np.array([0]), np.array([9])).numpy()
    assert np.isfinite(again).all()
    assert np.abs(again - still).max() > 1e-2


def test_a_layer_that_is_not_computed_is_an_error(backend, monkeypatch):
    elsewhere = replace(backend._nodes, h="ffn_elsewhere-")
    monkeypatch.setattr(backend, "_nodes", elsewhere)
    with pytest.raises(HQError, match="layer 0 was not computed"):
        list(backend.trace(tiny.exchanges(), ("sum",), ("answer",)))


def test_activations_that_are_not_there_is_an_error():
    with pytest.raises(HQError, match=r"layer 0 of model\.gguf cannot be observed"):
        GraphNodeFinder("model.gguf").nodes(3, 128)


def test_another_layout_of_tensors_is_a_sentence(monkeypatch):
    monkeypatch.setattr(
        library_module, "_find", lambda field, *_: (_ for _ in ()).throw(LookupError(field))
    )
    library_module.load_library.cache_clear()
    try:
        with pytest.raises(HQError, match=r"tensor layout .* is unknown"):
            library_module.load_library()
    finally:
        monkeypatch.undo()
        library_module.load_library.cache_clear()
        library_module.load_library()


def test_a_missing_library_is_a_sentence(monkeypatch):
    import builtins

    imported = builtins.__import__

    def without(name, *rest):
        if name == "llama_cpp":
            raise ImportError
        return imported(name, *rest)

    library_module.load_library.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    try:
        with pytest.raises(HQError, match=r"pip install 'hq\[llama\]'"):
            library_module.load_library()
    finally:
        monkeypatch.undo()
        library_module.load_library()


# --- lifetimes


def test_a_model_freed_while_its_contexts_live(gguf):
    model = LlamaModel(gguf("llama"))
    context = model.context(None, tokens=32, batch=8)
    model.close()
    model.close()
    with pytest.raises(HQError, match="is closed"):
        context.decode([5], [0], [0], [1])
    with pytest.raises(HQError, match="is closed"):
        model.context(None, tokens=32, batch=8)


def test_a_backend_freed_in_the_middle_of_a_trace(gguf):
    opened = LlamaBackend(gguf("llama"), "gguf-f32", token_budget=16)
    paused = opened.trace(tiny.exchanges(), MEASURES, SPANS)
    next(paused)
    opened.close()
    with pytest.raises(HQError, match="is closed"):
        next(paused)
    paused.close()


def test_a_full_cache_is_a_sentence(backend):
    context, _ = backend.context(256, 1, 256)
    context.decode(np.full(256, 5), np.arange(256), np.zeros(256), np.zeros(256))
    with pytest.raises(HQError, match="cache is full"):
        context.decode([5], [256], [0], [1])


def test_too_many_rows_are_a_sentence(backend):
    with pytest.raises(HQError, match="at most 255 rows in parallel"):
        backend.decoding().start([(5, 6)] * 256)


# --- the monitor


def neuron_set(backend: LlamaBackend, cett: str = "sum", tokens: str = "answer") -> NeuronSet:
    """Three neurons of two layers with made-up weights."""
    places = [(0, 3, 1.0), (2, 7, 2.0), (2, 90, -1.0)]
    return NeuronSet(
        model=backend.identity,
        cett=cett,
        tokens=tokens,
        labels="1-vs-1",
        intercept=0.1,
        neurons=tuple(
            Neuron(layer=layer, index=index, weight=weight, mean=0.01, scale=0.02)
            for layer, index, weight in places
        ),
        thresholds={"youden": 0.0},
    )


@pytest.mark.parametrize("cett", ["sum", "output"])
@pytest.mark.parametrize("tokens", ["answer", "prompt", "other"])
def test_the_live_score_is_the_probe_s_on_the_trace(backend, cett, tokens):
    neurons = neuron_set(backend, cett, tokens)
    prompt = (5, 6, 7, 8)
    with LlamaMonitor(backend, neurons) as monitor:
        steps = list(monitor.answer(prompt, ENDLESS, max_new_tokens=9))
    exchange = PromptResponse(prompt, tuple(step.token for step in steps))
    (batch,) = backend.trace([exchange], (cett,), (tokens,))
    expected = neurons.score(batch.features(neurons.cett, neurons.tokens))
    assert steps[-1].score == pytest.approx(expected[0], rel=1e-4)
    assert 0 < steps[-1].confidence < 1


def test_a_monitored_answer_is_the_greedy_one(backend):
    settings = Sampling(responses=1, temperature=0, max_new_tokens=12)
    (tree,) = sample(backend.decoding(), [("a", (5, 6, 7))], settings, ENDLESS)
    with LlamaMonitor(backend, neuron_set(backend)) as monitor:
        steps = list(monitor.answer((5, 6, 7), ENDLESS, max_new_tokens=12))
        silenced = {(layer, i): 0.0 for layer in range(3) for i in range(tiny.D_FF)}
        with backend.scale(silenced):
            other = list(monitor.answer((5, 6, 7), ENDLESS, max_new_tokens=12))
    assert tuple(step.token for step in steps) == tree.finished[0].ids
    assert [step.token for step in other] != [step.token for step in steps]
    assert {float(step.cett.max()) for step in other} == {0.0}


def test_an_answer_ends_without_its_end(backend):
    with LlamaMonitor(backend, neuron_set(backend)) as monitor:
        tokens = [step.token for step in monitor.answer((5, 6), ENDLESS, max_new_tokens=6)]
        cut = StopCriteria(frozenset({tokens[3]}), (), ENDLESS.decode)
        shorter = [step.token for step in monitor.answer((5, 6), cut, max_new_tokens=6)]
    assert shorter == tokens[: tokens.index(tokens[3])]


@pytest.mark.parametrize("tokens", ["answer", "prompt", "other"])
def test_a_response_that_is_followed_reads_as_it_would_have_been_written(backend, tokens):
    neurons, prompt = neuron_set(backend, tokens=tokens), (5, 6, 7, 8)
    scaled = {(neuron.layer, neuron.index): 0.0 for neuron in neurons.positive}
    with LlamaMonitor(backend, neurons) as writer, LlamaMonitor(backend, neurons) as reader:
        written = list(writer.answer(prompt, ENDLESS, 9))
        followed = list(reader.follow(prompt, (step.token for step in written)))
        assert [step.score for step in followed] == [step.score for step in written]

        def other():
            steps = writer.answer(prompt, ENDLESS, 9)
            while True:  # scaled only while a token is written
                with backend.scale(scaled):
                    step = next(steps, None)
                if step is None:
                    return
                yield step.token

        together = list(reader.follow(prompt, other()))
    exchange = PromptResponse(prompt, tuple(step.token for step in together))
    (batch,) = backend.trace([exchange], ("sum",), (tokens,))
    expected = neurons.score(batch.features("sum", tokens))
    assert together[-1].score == pytest.approx(expected[0], 1e-4)


def test_two_monitors_side_by_side(backend, gguf):
    with LlamaBackend(gguf("qwen2"), "gguf-f32") as other:
        alone = []
        for which in (backend, other):
            with LlamaMonitor(which, neuron_set(which)) as monitor:
                alone.append([s.score for s in monitor.answer((5, 6, 7), ENDLESS, 10)])
        with (
            LlamaMonitor(backend, neuron_set(backend)) as a,
            LlamaMonitor(other, neuron_set(other)) as b,
        ):
            pairs = zip(
                a.answer((5, 6, 7), ENDLESS, 10), b.answer((5, 6, 7), ENDLESS, 10), strict=True
            )
            together = [[one.score, two.score] for one, two in pairs]
    np.testing.assert_array_equal(np.array(together).T, alone)


def test_ten_thousand_tokens_take_no_more_memory(backend):
    process = psutil.Process()
    with LlamaMonitor(backend, neuron_set(backend), tokens=128) as monitor:

        def read(answers: int) -> None:
            for _ in range(answers):
                assert len(list(monitor.answer((5, 6), ENDLESS, 100))) == 100

        read(10)
        gc.collect()
        before = process.memory_info().rss
        read(100)
        gc.collect()
    assert process.memory_info().rss - before < 4 << 20


@pytest.fixture
def ctrl_c():
    """Ctrl-C as a terminal has it: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_middle_of_an_answer(backend):
    chosen: list[int] = []

    def interrupted(values: np.ndarray) -> int:
        chosen.append(int(values.argmax()))
        if len(chosen) == 10:
            signal.raise_signal(signal.SIGINT)
        return chosen[-1]

    with LlamaMonitor(backend, neuron_set(backend), tokens=128) as monitor:
        plain = [step.score for step in monitor.answer((5, 6), ENDLESS, 20)]
        with pytest.raises(KeyboardInterrupt):
            list(monitor.answer((5, 6), ENDLESS, 20, interrupted))
        assert len(chosen) == 10
        assert [step.score for step in monitor.answer((5, 6), ENDLESS, 20)] == plain


def test_zero_equals_zeroed_columns(backend, gguf, tmp_path):
    neurons = [(layer, i) for layer in range(tiny.LAYERS) for i in (1, 40, 127)]
    edited = tmp_path / "edited.gguf"
    edited.write_bytes(gguf("llama").read_bytes())
    for layer in range(tiny.LAYERS):
        (down,) = (
            t for t in GGUFReader(edited, "r+").tensors if t.name == f"blk.{layer}.ffn_down.weight"
        )
        down.data[:, [i for place, i in neurons if place == layer]] = 0
    exchanges = tiny.exchanges()
    with backend.scale(dict.fromkeys(neurons, 0.0)):
        scaled = logits(backend, exchanges)
    with LlamaBackend(edited, "gguf-f32") as other:
        np.testing.assert_array_equal(logits(other, exchanges), scaled)


def test_a_set_of_another_model_is_rejected(backend, gguf):
    with LlamaBackend(gguf("qwen2"), "gguf-f32") as other:
        with pytest.raises(HQError, match="belongs to"):
            LlamaMonitor(backend, neuron_set(other))


def test_a_prompt_without_room_is_rejected(backend):
    with LlamaMonitor(backend, neuron_set(backend), tokens=64) as monitor:
        for prompt, new in (((), 5), ((5,) * 60, 10)):
            with pytest.raises(HQError, match="do not fit"):
                next(monitor.answer(prompt, ENDLESS, new))
        with pytest.raises(HQError, match="do not fit"):
            next(monitor.follow((), (5,)))
        steps = monitor.follow((5,) * 60, (5,) * 10)
        assert len([next(steps) for _ in range(4)]) == 4
        with pytest.raises(HQError, match="do not fit"):
            next(steps)


# --- files


def test_damaged_files_never_end_the_process(gguf, tmp_path):
    source = tmp_path / "whole.gguf"
    source.write_bytes(gguf("llama", "q4_0").read_bytes())
    command = (sys.executable, "-m", "tests.hq.damaged_loads", str(source), "0", "80")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_another_kind_than_its_name_says_is_rejected(gguf):
    with pytest.raises(HQError, match=r"is of file type 0, not 7 \(q8_0\)"):
        LlamaBackend(gguf("llama"), "gguf-q8_0")


def test_texts_longer_than_the_context_are_rejected(backend):
    long = PromptResponse((5,) * 100, (6,) * 29)  # the tiny models know 128 positions
    for refused in (backend.trace([long]), backend.logits([long])):
        with pytest.raises(HQError, match="129 tokens is longer than the context"):
            next(iter(refused))
    with pytest.raises(HQError, match="longer than the context"):
        backend.decoding().start([(5,) * 129])


def test_token_ids_that_the_model_lacks_are_rejected(backend):
    with pytest.raises(HQError, match="outside the 128"):
        list(backend.trace([PromptResponse((5, 128), (6,))]))
