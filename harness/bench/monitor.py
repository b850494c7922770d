"""What watching costs: one-token decodes with a callback, and without one."""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from harness.bench import monitor_torch
from harness.bench.base import BenchRow, bench
from harness.bench.turns import COPIES, PROMPT, STEPS, by_copy, in_turns, several, typical
from harness.models.sources import EMBEDDED_NAME, gguf_of
from hq.backends.llamacpp.backend import LlamaBackend
from hq.llamacpp.library import library
from hq.llamacpp.model import Context

_LAYERS = 5
_WATCHED = 8  # neurons a layer
_LIMITS = {"decode_ratio_5_layers": "<= 1.01", "decode_ratio_all_layers": "<= 1.02"}


@bench("monitor")
def run(seed: int = 0, rounds: int = 12, model: str = EMBEDDED_NAME) -> list[BenchRow]:
    """One-token decodes of the embedded Q4_1 file on one thread. Takes about 4 minutes."""
    rng = np.random.default_rng(seed)
    with LlamaBackend(gguf_of(model), threads=1) as backend, ExitStack() as stack:
        contexts = _contexts(backend, rng, stack)
        ids = rng.integers(5, backend.model.vocabulary, PROMPT + STEPS)
        times = in_turns(contexts, ids, rounds, rng)
    plain = times.pop("plain")
    rows = [
        BenchRow(
            name=f"decode_ratio_{name}",
            value=typical(seconds) / typical(plain),
            unit="x",
            goal=_LIMITS.get(f"decode_ratio_{name}"),
            note=f"{by_copy(seconds)} ms a token in {COPIES} contexts",
        )
        for name, seconds in times.items()
    ]
    added = 1e3 * (np.percentile(times["all_layers"], 99) - np.percentile(plain, 99))
    p99 = f"{1e3 * np.percentile(plain, 99):.2f} ms without a callback; {by_copy(plain)} median"
    return [
        *rows,
        BenchRow(name="added_p99_ms", value=float(added), unit="ms", goal="<= 1", note=p99),
        *monitor_torch.rows(model, ids[:PROMPT], ids[PROMPT:], rounds, rng),
    ]


def _contexts(
    backend: LlamaBackend, rng: np.random.Generator, stack: ExitStack
) -> dict[str, list[Context]]:
    """Contexts that watch nothing, some, or all, natively or in Python; several of each."""
    layers, width = backend.identity.n_layers, backend.identity.d_ff
    five = sorted(rng.choice(layers, min(_LAYERS, layers), replace=False).tolist())

    def watching(chosen: Sequence[int]) -> Context:
        context, tap = backend.context(PROMPT + STEPS, 1, PROMPT)
        places = [(layer, int(i)) for layer in chosen for i in rng.choice(width, _WATCHED)]
        stack.enter_context(tap.watched(places, "sum"))
        return context

    def unwatched(callback: Any = None) -> Context:
        settings = {"tokens": PROMPT + STEPS, "batch": PROMPT}
        return stack.enter_context(Context(backend.model, None, callback=callback, **settings))

    kinds: dict[str, Callable[[], Context]] = {
        "plain": unwatched,
        "5_layers": partial(watching, five),
        "all_layers": partial(watching, range(layers)),
        "python_callback_5_layers": lambda: unwatched(_python_callback(five, width)),
        "python_callback_all_layers": lambda: unwatched(_python_callback(range(layers), width)),
    }
    return several(kinds)


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
