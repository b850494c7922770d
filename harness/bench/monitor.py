"""What watching costs: one-token decodes with a callback, and without one.

Where a context's memory happens to lie moves a token's time by 2% and more, which is what watching
costs. So there are several contexts of every kind, and they take turns token by token.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from harness.bench import monitor_torch
from harness.bench.base import Row, bench
from harness.embedded import NAME
from harness.sources import gguf_of
from hq.backends.llamacpp import LlamaBackend
from hq.llama.library import library
from hq.llama.model import Context

_PROMPT = 37  # tokens
_STEPS = 24  # tokens a round
_COPIES = 5  # contexts of each kind
_LAYERS = 5
_WATCHED = 8  # neurons a layer
_LIMITS = {"decode_ratio_5_layers": "<= 1.01", "decode_ratio_all_layers": "<= 1.02"}

Seconds = Float[np.ndarray, "copy round step"]


@bench("monitor")
def run(seed: int = 0, rounds: int = 12, model: str = NAME) -> list[Row]:
    """One-token decodes of the embedded Q4_1 file on one thread. Takes about 4 minutes."""
    rng = np.random.default_rng(seed)
    with LlamaBackend(gguf_of(model), threads=1) as backend, ExitStack() as stack:
        contexts = _contexts(backend, rng, stack)
        ids = rng.integers(5, backend.model.vocabulary, _PROMPT + _STEPS)
        times = _alternate(contexts, ids, rounds, rng)
    plain = times.pop("plain")
    rows = [
        Row(
            name=f"decode_ratio_{name}",
            value=_typical(seconds) / _typical(plain),
            unit="x",
            goal=_LIMITS.get(f"decode_ratio_{name}"),
            note=f"{_by_copy(seconds)} ms a token in {_COPIES} contexts",
        )
        for name, seconds in times.items()
    ]
    added = 1e3 * (np.percentile(times["all_layers"], 99) - np.percentile(plain, 99))
    p99 = f"{1e3 * np.percentile(plain, 99):.2f} ms without a callback; {_by_copy(plain)} median"
    return [
        *rows,
        Row(name="added_p99_ms", value=float(added), unit="ms", goal="<= 1", note=p99),
        *monitor_torch.rows(model, ids[:_PROMPT], ids[_PROMPT:], rounds, rng),
    ]


def _contexts(
    backend: LlamaBackend, rng: np.random.Generator, stack: ExitStack
) -> dict[str, list[Context]]:
    """Contexts that watch nothing, some, or all, natively or in Python; several of each."""
    layers, width = backend.identity.n_layers, backend.identity.d_ff
    five = sorted(rng.choice(layers, min(_LAYERS, layers), replace=False).tolist())

    def watching(chosen: Sequence[int]) -> Context:
        context, tap = backend.context(_PROMPT + _STEPS, 1, _PROMPT)
        places = [(layer, int(i)) for layer in chosen for i in rng.choice(width, _WATCHED)]
        stack.enter_context(tap.watched(places, "sum"))
        return context

    def unwatched(callback: Any = None) -> Context:
        settings = {"tokens": _PROMPT + _STEPS, "batch": _PROMPT}
        return stack.enter_context(Context(backend.model, None, callback=callback, **settings))

    kinds: dict[str, Callable[[], Context]] = {
        "plain": unwatched,
        "5_layers": partial(watching, five),
        "all_layers": partial(watching, range(layers)),
        "python_callback_5_layers": lambda: unwatched(_python_callback(five, width)),
        "python_callback_all_layers": lambda: unwatched(_python_callback(range(layers), width)),
    }
    found: dict[str, list[Context]] = {name: [] for name in kinds}
    for _ in range(_COPIES):  # in turn, so that no kind has all the early memory
        for name, make in kinds.items():
            found[name].append(make())
    return found


def _python_callback(layers: Sequence[int], width: int) -> Any:
    """What one writes without hq: a Python function that llama.cpp calls for every node."""
    layout = library().layout
    wanted = {f"ffn_swiglu-{layer}".encode() for layer in layers}

    def callback(tensor: int, ask: bool, _: object) -> bool:
        if ask:
            return ctypes.string_at(tensor + layout.name) in wanted
        at = ctypes.c_void_p.from_address(tensor + layout.data).value
        h = np.ctypeslib.as_array((ctypes.c_float * width).from_address(at or 0))
        np.abs(h).sum()
        return True

    return library().llama.ggml_backend_sched_eval_callback(callback)


def _alternate(
    contexts: dict[str, list[Context]], ids: np.ndarray, rounds: int, rng: np.random.Generator
) -> dict[str, Seconds]:
    """Every token in each context in turn, in an order drawn anew, as what ran before matters."""
    every = [(name, copy) for name in contexts for copy in range(_COPIES)]
    times = {name: np.empty((_COPIES, rounds + 1, _STEPS)) for name in contexts}
    for turn in range(rounds + 1):  # the first warms up
        for name, copy in every:
            context = contexts[name][copy]
            context.clear()
            context.decode(ids[:_PROMPT], np.arange(_PROMPT), np.zeros(_PROMPT), np.ones(_PROMPT))
        for step in range(_STEPS):
            place = _PROMPT + step
            for chosen in rng.permutation(len(every)):
                name, copy = every[chosen]
                started = time.perf_counter()
                contexts[name][copy].decode(ids[place : place + 1], [place], [0], [1])
                times[name][copy, turn, step] = time.perf_counter() - started
    return {name: seconds[:, 1:] for name, seconds in times.items()}


def _typical(seconds: Seconds) -> float:
    """Median over contexts of each one's median: one with bad luck in memory decides nothing."""
    return float(np.median(np.median(seconds, axis=(1, 2))))


def _by_copy(seconds: Seconds) -> str:
    return ", ".join(f"{1e3 * np.median(copy):.2f}" for copy in seconds)
