"""Contexts of llama.cpp: every answer, decoding and trace has its own, freed with its owner."""

import gc
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import zip_longest
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("llama_cpp")

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.llamacpp.context import Context
from hq.llamacpp.library import load_library
from hq.llamacpp.model import LlamaModel
from hq.monitor import LlamaMonitor, Step
from hq.tracing.sampling import Sampling, StopCriteria, sample
from tests import tiny
from tests.hq.monitored import neuron_set

GGUF = Callable[..., Path]
ENDLESS = StopCriteria(frozenset(), (), lambda ids: "x" * len(ids))
PROMPTS = (5, 6, 7), (90, 14, 33, 21)


@pytest.fixture(scope="module")
def backend(gguf: GGUF) -> Iterator[LlamaBackend]:
    """The tiny llama in F32."""
    with LlamaBackend(gguf("llama"), "gguf-f32") as opened:
        yield opened


@pytest.fixture
def monitor(backend: LlamaBackend) -> Iterator[LlamaMonitor]:
    with LlamaMonitor(backend, neuron_set(backend.identity), tokens=64) as opened:
        yield opened


def values_of(steps: list[Step]) -> list[tuple[int, float, list[float]]]:
    """All values of each step."""
    return [(step.token, step.score, step.cett.tolist()) for step in steps]


@pytest.fixture
def alone(monitor: LlamaMonitor) -> list[list[tuple[int, float, list[float]]]]:
    """Answers to the prompts, one after the other."""
    return [values_of(list(monitor.answer(prompt, ENDLESS, 12))) for prompt in PROMPTS]


# --- two at once


def test_two_answers_of_one_monitor_in_turns(monitor, alone):
    answers = [monitor.answer(prompt, ENDLESS, 12) for prompt in PROMPTS]
    actual = list(zip_longest(*answers))
    assert [values_of(list(steps)) for steps in zip(*actual, strict=True)] == alone
    assert len({cett for _, _, values in alone[0] for cett in values}) > 20  # none is frozen


def test_an_answer_goes_on_when_another_is_closed(monitor, alone):
    first, second = (monitor.answer(prompt, ENDLESS, 12) for prompt in PROMPTS)
    next(first)
    begun = [next(second)]
    first.close()
    assert values_of([*begun, *second]) == alone[1]


def test_an_answer_goes_on_when_another_has_run_to_its_end(monitor, alone):
    first = monitor.answer(PROMPTS[0], ENDLESS, 12)
    begun = [next(first)]
    assert values_of(list(monitor.answer(PROMPTS[1], ENDLESS, 12))) == alone[1]
    assert values_of([*begun, *first]) == alone[0]


def test_an_answer_and_a_response_that_is_followed(monitor, alone):
    written = [step[0] for step in alone[0]]
    answer, followed = monitor.answer(PROMPTS[1], ENDLESS, 12), monitor.follow(PROMPTS[0], written)
    pairs = list(zip(answer, followed, strict=True))
    assert values_of([step for step, _ in pairs]) == alone[1]
    assert values_of([step for _, step in pairs]) == alone[0]


def test_further_answers_give_their_memory_back(backend, monitor):
    count = len(backend.model.handles.contexts)
    answers = [monitor.answer(prompt, ENDLESS, 12) for prompt in PROMPTS * 2]
    for answer in answers:
        next(answer)
    assert len(backend.model.handles.contexts) == count + 3
    for answer in answers:
        answer.close()
    assert len(backend.model.handles.contexts) == count
    answers = [monitor.answer(prompt, ENDLESS, 12) for prompt in PROMPTS]
    with pytest.raises(HQError, match="do not fit"):
        next(monitor.answer(PROMPTS[0], ENDLESS, 100))
    assert len(backend.model.handles.contexts) == count


def test_a_closed_monitor_ends_its_answers(backend):
    monitor = LlamaMonitor(backend, neuron_set(backend.identity), tokens=64)
    first, second = (monitor.answer(prompt, ENDLESS, 12) for prompt in PROMPTS)
    next(first), next(second)
    monitor.close()
    for answer in (first, second):
        with pytest.raises(HQError, match="is closed"):
            next(answer)
    with pytest.raises(HQError, match="monitor is closed"):
        next(monitor.answer(PROMPTS[0], ENDLESS, 12))


def test_the_logits_that_are_chosen_from_may_be_kept(monitor):
    views: list[np.ndarray] = []
    copies: list[np.ndarray] = []

    def choose(logits: np.ndarray) -> int:
        views.append(logits)
        copies.append(logits.copy())
        return int(logits.argmax())

    list(monitor.answer(PROMPTS[0], ENDLESS, 12, choose))
    np.testing.assert_array_equal(views, copies)
    assert len({logits.tobytes() for logits in views}) == 12


def test_decodings_traces_and_answers_at_once(backend, monitor, alone):
    settings = Sampling(responses=1, temperature=0, max_new_tokens=12)
    expected = [
        sample(backend.decoding(), [("a", prompt)], settings, ENDLESS).__next__().finished[0].ids
        for prompt in PROMPTS
    ]
    exchanges = tiny.exchanges()
    small = LlamaBackend(backend.file.path, "gguf-f32", token_budget=16)  # several batches
    with closing(small), LlamaMonitor(small, neuron_set(small.identity), tokens=64) as watching:
        traces = [batch.values for batch in small.trace(exchanges)]
        reading = small.trace(exchanges)
        decodings = [small.decoding() for _ in PROMPTS]
        answer = watching.answer(PROMPTS[0], ENDLESS, 12)
        logits = [d.start([p]) for d, p in zip(decodings, PROMPTS, strict=True)]
        actual: list[list[int]] = [[], []]
        batches, steps = [], []
        for _ in range(12):
            batches += [batch.values for batch in (next(reading, None),) if batch is not None]
            steps.append(next(answer))
            for k, decoding in enumerate(decodings):
                actual[k].append(int(logits[k].argmax()))
                logits[k] = decoding.step(np.array([0]), np.array(actual[k][-1:]))
    assert [tuple(ids) for ids in actual] == expected
    assert values_of(steps) == alone[0]
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(traces))


def test_a_context_has_one_reader_and_an_observer_one_context(backend):
    context, observer = backend.context(32, 1, 32)
    with observer.watched([(0, 3)], "sum"), pytest.raises(HQError, match="is being read already"):
        with observer.watched([(1, 4)], "sum"):
            pass
    with context, pytest.raises(HQError, match="create one for each"):
        backend.model.context(observer, tokens=32, batch=32)


# --- scales


def test_scales_that_change_during_a_trace_are_an_error(gguf):
    silenced = {(0, i): 0.0 for i in range(tiny.D_FF)}
    with LlamaBackend(gguf("llama"), "gguf-f32", token_budget=16) as backend:
        for read in (backend.trace, backend.logits):
            reading = read(tiny.exchanges())
            with backend.scale(silenced):
                next(reading)
            with pytest.raises(HQError, match="scales changed"):
                list(reading)
            reading = read(tiny.exchanges())
            next(reading)
            with backend.scale(silenced):
                pass  # and back again: the same scales
            assert list(reading)


def test_a_shared_prefix_is_computed_under_the_scales_of_its_answers(backend):
    silenced = {(layer, i): 0.0 for layer in range(2) for i in range(tiny.D_FF)}
    decoding = backend.decoding()
    prompts = [(5, 6, 7, 8, 9, k) for k in (10, 11)]
    decoding.share(prompts)
    with backend.scale(silenced):
        actual = decoding.start(prompts).numpy().copy()
        expected = backend.decoding().start(prompts).numpy()
    np.testing.assert_array_equal(actual, expected)
    again = decoding.start(prompts).numpy()
    np.testing.assert_array_equal(again, backend.decoding().start(prompts).numpy())
    assert np.abs(again - actual).max() > 1e-2


def test_a_mapping_that_changes_later_changes_no_scale(backend):
    factors = {(0, i): 0.0 for i in range(tiny.D_FF)}
    with backend.scale(factors):
        expected = backend.decoding().start(PROMPTS[:1]).numpy()
        factors[0, 5] = float("nan")
        with backend.scale({}):
            np.testing.assert_array_equal(backend.decoding().start(PROMPTS[:1]).numpy(), expected)


# --- after a failure, and after close


def test_nothing_is_computed_after_a_failed_decode(backend, monkeypatch):
    decoding = backend.decoding()
    expected = decoding.start(PROMPTS[:1]).numpy().copy()
    context = decoding._context
    monkeypatch.setattr(load_library().llama, "llama_decode", lambda *_: -3)
    with pytest.raises(HQError, match="code -3"):
        decoding.step(np.array([0]), np.array([8]))
    monkeypatch.undo()
    with pytest.raises(HQError, match="clear its context first"):
        decoding.step(np.array([0]), np.array([8]))
    assert not context.is_valid
    np.testing.assert_array_equal(decoding.start(PROMPTS[:1]).numpy(), expected)


def test_use_after_close_is_a_sentence(gguf):
    backend = LlamaBackend(gguf("llama"), "gguf-f32")
    decoding = backend.decoding()
    decoding.start(PROMPTS[:1])
    backend.close()
    for use in (
        lambda: decoding.step(np.array([0]), np.array([8])),
        lambda: decoding.start(PROMPTS[:1]),
        backend.decoding,
        lambda: list(backend.trace(tiny.exchanges())),
        lambda: LlamaMonitor(backend, neuron_set(backend.identity)),
        lambda: backend.model.tokenize("text"),
        lambda: backend.model.piece(5),
        lambda: backend.model.ends,
        lambda: backend.model.adapter(gguf("llama")),
    ):
        with pytest.raises(HQError, match="is closed"):
            use()


# --- memory


def growth(work: Callable[[], object], times: int = 20) -> int:
    """Bytes that the process grows by, after a first round."""
    work()
    before = psutil.Process().memory_info().rss
    for _ in range(times):
        work()
    return int(psutil.Process().memory_info().rss - before)


KEYS = {"tokens": 1 << 15, "batch": 8}  # 24 MiB of keys and values
LIMIT = 200 << 20  # what malloc keeps for later is below that, and twenty of them take 480 MiB


def test_a_dropped_context_is_freed(backend):
    def drop() -> None:
        backend.model.context(None, **KEYS).decode([5], [0], [0], [1])

    count = len(backend.model.handles.contexts)
    assert growth(drop) < LIMIT
    assert len(backend.model.handles.contexts) == count


def test_a_model_that_is_bound_again_is_freed_with_its_contexts(gguf):
    path = gguf("llama")
    held: dict[str, object] = {}

    def bind() -> None:
        model = LlamaModel(path)
        held["model"], held["context"] = model, model.context(None, **KEYS)

    assert growth(bind) < LIMIT


def test_a_cycle_of_model_and_contexts_is_collected(gguf):
    class Owner(LlamaModel):
        """A model that refers to its contexts, which refer to it."""

        contexts: tuple[Context, ...] = ()

    path = gguf("llama")

    def tie() -> None:
        model = Owner(path)
        model.contexts = tuple(model.context(None, **KEYS) for _ in range(2))
        handles = model.handles
        del model
        gc.collect()
        assert not handles.contexts
        assert handles.model is None

    gc.freeze()  # so that what was there before costs a collection nothing
    try:
        assert growth(tie, times=10) < LIMIT
    finally:
        gc.unfreeze()


def test_close_frees_every_context_of_the_model(gguf):
    path = gguf("llama")

    def close() -> None:
        model = LlamaModel(path)
        contexts = [model.context(None, **KEYS), Context(model, None, **KEYS)]
        model.close()
        assert not model.handles.contexts
        for context in contexts:
            context.close()

    assert growth(close, times=10) < LIMIT


def test_logits_keep_their_context_alive(backend):
    logits = backend.model.context(None, tokens=32, batch=8).decode([5, 6], [0, 1], [0, 0], [1, 1])
    count = len(backend.model.handles.contexts)
    copy = logits.copy()
    for _ in range(5):
        backend.model.context(None, tokens=32, batch=8).decode([9], [0], [0], [1])
    np.testing.assert_array_equal(logits, copy)
    del logits
    gc.collect()
    assert len(backend.model.handles.contexts) == count - 1
