"""Bench `monitor`: what watching neurons costs per generated token, in llama.cpp and in torch."""

import ctypes
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers.generation.streamers import BaseStreamer

from harness.bench.base import BenchRow, alternate, median_first, median_ratio, seconds_of
from harness.bench.decode_timing import (
    PROMPT,
    STEPS,
    by_context,
    decode_ratio,
    make_contexts,
    time_decodes,
)
from harness.models.packaged import EMBEDDED_NAME
from harness.models.sources import gguf_of, resolve_model
from hq.backends.llamacpp.backend import LlamaBackend
from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.hooks import DownHooks
from hq.llamacpp.context import Context
from hq.llamacpp.library import load_library
from hq.monitor import TorchMonitor
from hq.monitor.combination import uncertainty_of
from hq.neurons.neuron_set import Neuron, NeuronSet

_LAYERS = 5
_WATCHED = 8  # neurons per layer
_GOALS = {"5_layers": "<= 1.01", "all_layers": "<= 1.02"}

Ids = Int[np.ndarray, " token"]


def bench_monitor(seed: int = 0, rounds: int = 12, model: str = EMBEDDED_NAME) -> list[BenchRow]:
    """Measure one-token decodes of the embedded Q4_1 file on one thread. Takes about 4 minutes.

    Args:
        seed: Seed of the watched neurons, the tokens and the order.
        rounds: Timed rounds.
        model: A GGUF file of one layer count and width, or the embedded model.
    """
    rng = np.random.default_rng(seed)
    with LlamaBackend(gguf_of(model), threads=1) as backend, ExitStack() as stack:
        contexts = _contexts(backend, rng, stack)
        ids = rng.integers(5, backend.model.vocabulary, PROMPT + STEPS)
        times = time_decodes(contexts, ids, rounds, rng)
    plain = times.pop("plain")
    rows = [
        decode_ratio(f"decode_ratio_{name}", seconds, plain, _GOALS.get(name))
        for name, seconds in times.items()
    ]
    added = 1e3 * (np.percentile(times["all_layers"], 99) - np.percentile(plain, 99))
    p99 = f"{1e3 * np.percentile(plain, 99):.2f} ms without a callback; {by_context(plain)} median"
    return [
        *rows,
        _entropy_row(backend.model.vocabulary, float(np.median(plain)), rng),
        BenchRow(name="added_p99_ms", value=float(added), unit="ms", goal="<= 1", note=p99),
        *_torch_rows(model, ids[:PROMPT], ids[PROMPT:], rounds, rng),
    ]


def _entropy_row(vocabulary: int, plain: float, rng: np.random.Generator) -> BenchRow:
    """What a combined bundle adds: the entropy of the logits that the model returns anyway."""
    logits = rng.normal(size=vocabulary).astype(np.float32)
    uncertainty_of(logits, 0)
    seconds = float(np.median([seconds_of(lambda: uncertainty_of(logits, 0)) for _ in range(200)]))
    return BenchRow(
        name="decode_ratio_entropy",
        value=1 + seconds / plain,
        unit="x",
        goal="<= 1.03",
        note=f"{1e3 * seconds:.3f} ms for {vocabulary:,} logits; plain {1e3 * plain:.2f} ms",
    )


# --- llama.cpp


def _contexts(
    backend: LlamaBackend, rng: np.random.Generator, stack: ExitStack
) -> dict[str, list[Context]]:
    """Contexts that watch no, some or all layers, by a native or a Python callback."""
    layers, width = backend.identity.n_layers, backend.identity.d_ff
    five = sorted(rng.choice(layers, min(_LAYERS, layers), replace=False).tolist())

    def watching(chosen: Sequence[int]) -> Context:
        context, observer = backend.context(PROMPT + STEPS, 1, PROMPT)
        neurons = [(layer, int(i)) for layer in chosen for i in rng.choice(width, _WATCHED)]
        stack.enter_context(observer.watched(neurons, "sum"))
        return context

    def unwatched(callback: Any = None) -> Context:
        sizes: dict[str, Any] = {"tokens": PROMPT + STEPS, "batch": PROMPT}
        return stack.enter_context(Context(backend.model, None, callback=callback, **sizes))

    kinds: dict[str, Callable[[], Context]] = {
        "plain": unwatched,
        "5_layers": partial(watching, five),
        "all_layers": partial(watching, range(layers)),
        "python_callback_5_layers": lambda: unwatched(_python_callback(five, width)),
        "python_callback_all_layers": lambda: unwatched(_python_callback(range(layers), width)),
    }
    return make_contexts(kinds)


def _python_callback(layers: Sequence[int], width: int) -> Any:
    """The alternative without hq: a Python function that llama.cpp calls for every node."""
    layout = load_library().layout
    wanted = {f"ffn_swiglu-{layer}".encode() for layer in layers}

    def callback(tensor: int, ask: bool, _: object) -> bool:
        if ask:
            return ctypes.string_at(tensor + layout.name) in wanted
        at = ctypes.c_void_p.from_address(tensor + layout.data).value
        h = np.ctypeslib.as_array((ctypes.c_float * width).from_address(at or 0))
        np.abs(h).sum()
        return True

    return load_library().llama.ggml_backend_sched_eval_callback(callback)


# --- torch


def _torch_rows(
    model: str, prompt: Ids, text: Ids, rounds: int, rng: np.random.Generator
) -> list[BenchRow]:
    """Rows at fp16 on a CPU: answers to `prompt` of the length of `text`, and `text` itself."""
    with TorchBackend(resolve_model(model), "fp16", device="cpu") as backend:
        return [
            *_monitor_rows(backend, prompt, len(text), rounds, rng),
            _hooks_row(backend, prompt, text, max(rounds // 2, 2)),
        ]


def _monitor_rows(
    backend: TorchBackend, prompt: Ids, steps: int, rounds: int, rng: np.random.Generator
) -> list[BenchRow]:
    """Greedy answers inside a monitor of 5 or all layers and outside, in random order."""
    count = backend.identity.n_layers
    five = sorted(rng.choice(count, min(_LAYERS, count), replace=False).tolist())
    kinds: dict[str, AbstractContextManager[object]] = {
        "plain": nullcontext(),
        "5_layers": _monitor(backend, five, rng),
        "all_layers": _monitor(backend, range(count), rng),
    }
    ids = torch.from_numpy(prompt)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    length = {"min_new_tokens": steps, "max_new_tokens": steps}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name in rng.permutation(list(kinds)):
            clock = _TokenClock()
            with kinds[name]:
                backend.model.generate(**inputs, **length, streamer=clock)
            times[name].append(float(np.median(clock.seconds)))
    medians = {name: np.array(seconds[1:]) for name, seconds in times.items()}  # first warms up
    plain = medians.pop("plain")
    without = f"{1e3 * np.median(plain):.2f} ms without"
    return [
        BenchRow(
            name=f"torch_monitor_ratio_{name}",
            value=float(np.median(seconds) / np.median(plain)),
            unit="x",
            note=f"{1e3 * np.median(seconds):.2f} ms a token, {without}",
        )
        for name, seconds in medians.items()
    ]


def _monitor(
    backend: TorchBackend, layers: Iterable[int], rng: np.random.Generator
) -> TorchMonitor:
    """A monitor of random neurons of these layers."""
    chosen = {layer: rng.choice(backend.identity.d_ff, _WATCHED, replace=False) for layer in layers}
    neurons = NeuronSet(
        model=backend.identity,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0,
        neurons=tuple(
            Neuron(layer=layer, index=int(index), weight=1, mean=0, scale=1)
            for layer, indices in chosen.items()
            for index in sorted(indices)
        ),
    )
    return TorchMonitor(backend.model, neurons, backend.identity)


class _TokenClock(BaseStreamer):  # type: ignore[misc]  # transformers is not followed
    """Records when each token arrives: after a forward pass and `generate`'s own work."""

    def __init__(self) -> None:
        self._ticks: list[float] = []

    @property
    def seconds(self) -> Float[np.ndarray, " step"]:
        """Seconds of each token after the first, which includes reading the prompt."""
        return np.diff(self._ticks[1:])

    def put(self, value: object) -> None:
        """Record the time: once for the prompt, then for each token."""
        self._ticks.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing, as all times are recorded."""


def _hooks_row(backend: TorchBackend, prompt: Ids, text: Ids, rounds: int) -> BenchRow:
    """The cost of a trace's hooks, which compute `sum`-CETT of all neurons."""
    norms = [torch.from_numpy(backend.norms[part]) for part in backend.identity.space.slices]
    hooks = DownHooks(backend.downs, norms, ("sum",))
    decoding = backend.decoding()
    row = np.array([0])

    def seconds(is_watched: bool) -> float:
        decoding.start([tuple(prompt.tolist())])
        started = time.perf_counter()
        for token in np.split(text, len(text)):
            if is_watched:
                with hooks, torch.inference_mode():
                    hooks.expect(torch.ones(1, 1, 1))
                    decoding.step(row, token)
                    hooks.collect()
            else:
                decoding.step(row, token)
        return time.perf_counter() - started

    pairs = alternate(partial(seconds, False), partial(seconds, True), rounds)
    return BenchRow(
        name="torch_decode_ratio_all_layers",
        value=median_ratio(pairs),
        unit="x",
        note=f"{1e3 * median_first(pairs) / len(text):.1f} ms a token at fp16",
    )
