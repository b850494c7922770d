"""What watching costs: one-token decodes with a callback, and without one."""

import ctypes
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch

from harness.bench.base import Row, bench
from harness.bench.turns import COPIES, PROMPT, STEPS, by_copy, in_turns, several, typical
from harness.embedded import NAME
from harness.sources import gguf_of, resolve_model
from hq.backends.llamacpp import LlamaBackend
from hq.backends.torch import TorchBackend
from hq.backends.torch_hooks import DownHooks
from hq.llama.library import library
from hq.llama.model import Context

_LAYERS = 5
_WATCHED = 8  # neurons a layer
_LIMITS = {"decode_ratio_5_layers": "<= 1.01", "decode_ratio_all_layers": "<= 1.02"}


@bench("monitor")
def run(seed: int = 0, rounds: int = 12, model: str = NAME) -> list[Row]:
    """One-token decodes of the embedded Q4_1 file on one thread. Takes about 2 minutes."""
    rng = np.random.default_rng(seed)
    with LlamaBackend(gguf_of(model), threads=1) as backend, ExitStack() as stack:
        contexts = _contexts(backend, rng, stack)
        ids = rng.integers(5, backend.model.vocabulary, PROMPT + STEPS)
        times = in_turns(contexts, ids, rounds, rng)
    plain = times.pop("plain")
    rows = [
        Row(
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
        Row(name="added_p99_ms", value=float(added), unit="ms", goal="<= 1", note=p99),
        _torch(model, ids, max(rounds // 4, 2)),
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


def _torch(model: str, ids: np.ndarray, rounds: int) -> Row:
    """The same question of torch's hooks, which read `sum`-CETT of all neurons."""
    with TorchBackend(resolve_model(model), "fp16", device="cpu") as backend:
        hooks = DownHooks(backend.downs, [torch.from_numpy(n) for n in backend.norms], ("sum",))
        decoding = backend.decoding()
        token = np.array([0])

        def steps(watched: bool) -> float:
            decoding.start([tuple(ids[:PROMPT].tolist())])
            started = time.perf_counter()
            for step in range(STEPS):
                if watched:
                    with hooks, torch.inference_mode():
                        hooks.expect(torch.ones(1, 1, 1))
                        decoding.step(token, ids[PROMPT + step : PROMPT + step + 1])
                        hooks.collect()
                else:
                    decoding.step(token, ids[PROMPT + step : PROMPT + step + 1])
            return time.perf_counter() - started

        pairs = [(steps(False), steps(True)) for _ in range(rounds + 1)][1:]
    return Row(
        name="torch_decode_ratio_all_layers",
        value=float(np.median([watched / plain for plain, watched in pairs])),
        unit="x",
        note=f"{1e3 * np.median([plain for plain, _ in pairs]) / STEPS:.1f} ms a token at fp16",
    )
