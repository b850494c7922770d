"""Bench `monitor`: what watching costs a token that is decoded alone, on llama.cpp and on torch.

Contexts take turns within one process, a token each, so a shared machine's pace cancels in ratios.
`without_callback` is a second context like the one that all are compared with: the noise.
"""

import ctypes
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from harness.bench.base import Row, bench
from harness.embedded import NAME
from harness.sources import gguf_of, resolve_model
from hq.backends.llamacpp import LlamaBackend
from hq.backends.torch import TorchBackend
from hq.backends.torch_hooks import DownHooks
from hq.llama.library import library
from hq.llama.model import Context

_PROMPT = 37  # tokens
_STEPS = 24  # tokens a round
_LAYERS = 5
_WATCHED = 8  # neurons a layer
_LIMITS = {"decode_ratio_5_layers": "<= 1.01", "decode_ratio_all_layers": "<= 1.02"}

Seconds = Float[np.ndarray, "round step"]


@bench("monitor")
def run(seed: int = 0, rounds: int = 40, model: str = NAME) -> list[Row]:
    """One-token decodes of the embedded Q4_1 file on one thread. Takes about 2 minutes."""
    rng = np.random.default_rng(seed)
    with LlamaBackend(gguf_of(model), threads=1) as backend, ExitStack() as stack:
        contexts = _contexts(backend, rng, stack)
        ids = rng.integers(5, backend.model.vocabulary, _PROMPT + _STEPS)
        times = _alternate(contexts, ids, rounds, rng)
    plain = times.pop("plain")
    rows = [
        Row(
            name=f"decode_ratio_{name}",
            value=float(np.median(seconds / plain)),
            unit="x",
            goal=_LIMITS.get(f"decode_ratio_{name}"),
            note=f"{1e3 * np.median(seconds):.2f} ms a token, median over {seconds.size} tokens",
        )
        for name, seconds in times.items()
    ]
    added = 1e3 * (np.percentile(times["all_layers"], 99) - np.percentile(plain, 99))
    return [
        *rows,
        Row(name="added_p99_ms", value=float(added), unit="ms", goal="<= 1", note=_p99(plain)),
        _torch(model, ids, max(rounds // 8, 2)),
    ]


def _contexts(
    backend: LlamaBackend, rng: np.random.Generator, stack: ExitStack
) -> dict[str, Context]:
    """Contexts that watch nothing, some, or all, natively or in Python."""
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

    return {
        "plain": unwatched(),
        "without_callback": unwatched(),
        "5_layers": watching(five),
        "all_layers": watching(range(layers)),
        "python_callback_5_layers": unwatched(_python_callback(five, width)),
        "python_callback_all_layers": unwatched(_python_callback(range(layers), width)),
    }


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
    contexts: dict[str, Context], ids: np.ndarray, rounds: int, rng: np.random.Generator
) -> dict[str, Seconds]:
    """Every token in each context in turn, in an order drawn anew, as what ran before matters."""
    names = list(contexts)
    times = {name: np.empty((rounds + 1, _STEPS)) for name in names}
    for turn in range(rounds + 1):  # the first warms up
        for context in contexts.values():
            context.clear()
            wanted = np.ones(_PROMPT)
            context.decode(ids[:_PROMPT], np.arange(_PROMPT), np.zeros(_PROMPT), wanted)
        for step in range(_STEPS):
            place = _PROMPT + step
            for name in rng.permutation(names):
                started = time.perf_counter()
                contexts[name].decode(ids[place : place + 1], [place], [0], [1])
                times[name][turn, step] = time.perf_counter() - started
    return {name: seconds[1:] for name, seconds in times.items()}


def _torch(model: str, ids: np.ndarray, rounds: int) -> Row:
    """The same question of torch's hooks, which read `sum`-CETT of all neurons."""
    with TorchBackend(resolve_model(model), "fp16", device="cpu") as backend:
        hooks = DownHooks(backend.downs, [torch.from_numpy(n) for n in backend.norms], ("sum",))
        decoding = backend.decoding()
        token = np.array([0])

        def steps(watched: bool) -> float:
            decoding.start([tuple(ids[:_PROMPT].tolist())])
            started = time.perf_counter()
            for step in range(_STEPS):
                if watched:
                    with hooks, torch.inference_mode():
                        hooks.expect(torch.ones(1, 1, 1))
                        decoding.step(token, ids[_PROMPT + step : _PROMPT + step + 1])
                        hooks.collect()
                else:
                    decoding.step(token, ids[_PROMPT + step : _PROMPT + step + 1])
            return time.perf_counter() - started

        pairs = [(steps(False), steps(True)) for _ in range(rounds + 1)][1:]
    return Row(
        name="torch_decode_ratio_all_layers",
        value=float(np.median([watched / plain for plain, watched in pairs])),
        unit="x",
        note=f"{1e3 * np.median([plain for plain, _ in pairs]) / _STEPS:.1f} ms a token at fp16",
    )


def _p99(seconds: Seconds) -> str:
    return f"p99 of a token without a callback {1e3 * np.percentile(seconds, 99):.2f} ms"
