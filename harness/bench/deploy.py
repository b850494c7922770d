"""Four ways to deploy a suppression: what each costs a token, and how far it is from the others.

The reference is scaling at run time by the native callback, on the same file; that callback is laid
beside torch's hooks, and those beside a model whose weights were edited. An effect is the change in
all logits of a text from the model as it is.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from harness.bench.base import BenchRow, bench, seconds_of
from harness.bench.turns import COPIES, PROMPT, STEPS, by_copy, in_turns, several, typical
from harness.models.sources import EMBEDDED_NAME, gguf_of, resolve_model
from hq.backends.base import Backend
from hq.backends.llamacpp.backend import LlamaBackend
from hq.backends.transformers.backend import TorchBackend
from hq.gguf.write import write as write_gguf
from hq.llamacpp.model import Context
from hq.neurons.prompt_response import PromptResponse
from hq.suppress.bake import bake
from hq.suppress.bake.copying import copy_to_disk
from hq.suppress.lora.gguf import write as write_adapter

_LAYERS = 5
_NEURONS = 4  # a layer
_OTHER_ALPHAS = (0.5, 0.3)  # beside 0
_BAKES = 5
_PAIRS = 3  # of decodes in torch
_SIZES = {"tokens": PROMPT + STEPS, "batch": PROMPT + STEPS}

Neurons = list[tuple[int, int]]
Logits = Float[np.ndarray, "token vocab"]


@bench("deploy")
def run(seed: int = 0, rounds: int = 6, model: str = EMBEDDED_NAME) -> list[BenchRow]:
    """20 neurons in 5 layers, drawn at random and silenced. Takes about 3 minutes, 4 GB."""
    rng, source = np.random.default_rng(seed), gguf_of(model)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with LlamaBackend(source) as backend:
            neurons = _drawn(backend, rng)
            ids = rng.integers(5, backend.model.vocabulary, PROMPT + STEPS)
            write_adapter(backend.file, dict.fromkeys(neurons, 0.0), folder / "adapter.gguf")
            seconds = _bake_seconds(source, folder / "baked.gguf", neurons)
            agreement = _agreement(backend, folder, neurons, ids)
        times = _times(folder, source, neurons, ids, rounds, rng)
        checkpoint = resolve_model(model)
        with TorchBackend(checkpoint, device="cpu") as hooked:
            torch_rows = _torch(hooked, checkpoint, folder, neurons, ids)
    plain = times.pop("plain")
    ratios = {
        name: BenchRow(
            name=f"{name}_decode_ratio",
            value=typical(found) / typical(plain),
            unit="x",
            goal="<= 1.02",
            note=f"{by_copy(found)} ms of CPU a token in {COPIES} contexts; plain {by_copy(plain)}",
        )
        for name, found in times.items()
    }
    return [
        *(ratios["baked"], agreement["baked"], seconds),
        *(ratios["lora"], agreement["lora"]),
        ratios["native_callback"],
        *torch_rows,
    ]


def _drawn(backend: LlamaBackend, rng: np.random.Generator) -> Neurons:
    layers, width = backend.identity.n_layers, backend.identity.d_ff
    chosen = sorted(rng.choice(layers, min(_LAYERS, layers), replace=False).tolist())
    return [(layer, int(i)) for layer in chosen for i in rng.choice(width, _NEURONS, replace=False)]


def _bake_seconds(source: Path, into: Path, neurons: Neurons) -> BenchRow:
    """The baked file stays."""
    baked, copied = [], []
    for _ in range(_BAKES):
        into.unlink(missing_ok=True)
        baked.append(seconds_of(lambda: bake(source, into, dict.fromkeys(neurons, 0.0))))
        copied.append(seconds_of(lambda: copy_to_disk(source, into.with_name("copy.gguf"))))
    return BenchRow(
        name="bake_seconds",
        value=float(np.median(baked)),
        unit="s",
        note=f"{source.stat().st_size / 1e6:.0f} MB, synced; only copied and synced in "
        f"{np.median(copied):.2f} s",
    )


# --- agreement


def _agreement(
    backend: LlamaBackend, folder: Path, neurons: Neurons, ids: np.ndarray
) -> dict[str, BenchRow]:
    """Baked weights and the adapter beside scaling at run time, on one file."""
    model = backend.model
    with model.context(None, **_SIZES) as context:
        plain = _logits(context, ids)
    adapter = model.adapter(folder / "adapter.gguf")
    differences: dict[str, dict[float, float]] = {"baked": {}, "lora": {}}
    errors: dict[str, dict[float, float]] = {"baked": {}, "lora": {}}
    for alpha in (0.0, *_OTHER_ALPHAS):
        factors = dict.fromkeys(neurons, alpha)
        context, _ = backend.context(len(ids), 1, len(ids))
        with context, backend.scale(factors):
            scaled = _logits(context, ids)
        with model.context(None, **_SIZES) as context:
            context.adapt(adapter, 1 - alpha)
            found = {"lora": _logits(context, ids)}
        path = folder / ("baked.gguf" if alpha == 0 else f"baked-{alpha}.gguf")
        if not path.exists():
            bake(backend.file.path, path, factors)
        with LlamaBackend(path) as baked, baked.model.context(None, **_SIZES) as context:
            found["baked"] = _logits(context, ids)
        for name, logits in found.items():
            differences[name][alpha] = float(np.abs(logits - scaled).max())
            errors[name][alpha] = _off(logits - plain, scaled - plain)
    return {
        "baked": BenchRow(
            name="baked_max_abs_logit_difference",
            value=differences["baked"].pop(0.0),
            unit="",
            goal="<= 0",
            note=f"from run-time scaling at α = 0{_at(differences['baked'])}",
        ),
        "lora": BenchRow(
            name="lora_relative_error_of_effect",
            value=errors["lora"].pop(0.0),
            unit="",
            goal="<= 0",
            note=f"against run-time scaling at α = 0{_at(errors['lora'])}",
        ),
    }


def _at(values: Mapping[float, float]) -> str:
    return "".join(f"; at {alpha}: {value:.2g}" for alpha, value in values.items())


def _logits(context: Context, ids: np.ndarray) -> Logits:
    """At every token: of a prompt read at once, and of the tokens after it one by one."""
    found = []
    for start, end in [(0, PROMPT), *((place, place + 1) for place in range(PROMPT, len(ids)))]:
        places = np.arange(start, end)
        found.append(context.decode(ids[start:end], places, 0 * places, 0 * places + 1).copy())
    return np.concatenate(found)


def _off(found: Logits, expected: Logits) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- time


def _times(
    folder: Path,
    source: Path,
    neurons: Neurons,
    ids: np.ndarray,
    rounds: int,
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "copy round step"]]:
    """Every context has a file of its own, as where weights lie in memory moves a token's time too.

    None finds its weights in a cache more often than another.
    """
    with ExitStack() as stack:
        numbers = count()

        def opened(original: Path) -> LlamaBackend:
            path = folder / f"copy-{next(numbers)}.gguf"
            copy_to_disk(original, path)
            return stack.enter_context(LlamaBackend(path))

        def decoding(original: Path) -> Context:
            return opened(original).model.context(None, **_SIZES)

        def adapted() -> Context:
            backend = opened(source)
            context = backend.model.context(None, **_SIZES)
            context.adapt(backend.model.adapter(folder / "adapter.gguf"), 1.0)
            return context

        def called_back() -> Context:
            backend = opened(source)
            stack.enter_context(backend.scale(dict.fromkeys(neurons, 0.0)))
            return backend.context(len(ids), 1, len(ids))[0]

        contexts = several(
            {
                "plain": partial(decoding, source),
                "baked": partial(decoding, folder / "baked.gguf"),
                "lora": adapted,
                "native_callback": called_back,
            }
        )
        # llama.cpp's one thread is this one; others' share of a busy machine is no part of a ratio.
        return in_turns(contexts, ids, rounds, rng, clock=time.thread_time)


# --- torch


def _torch(
    hooked: TorchBackend, checkpoint: Path, folder: Path, neurons: Neurons, ids: np.ndarray
) -> list[BenchRow]:
    """Torch's hooks; and the callback beside them, in a file of the same float32 weights."""
    write_gguf(checkpoint, folder / "f32.gguf", "f32", hooked.identity)
    with LlamaBackend(folder / "f32.gguf") as watched:
        plain, scaled = _with_and_without(watched, neurons, ids)
    hooks_plain, hooks_scaled = _with_and_without(hooked, neurons, ids)
    seconds = _decoding(hooked, neurons, ids)
    with torch.no_grad():
        for layer, index in neurons:
            down: Any = hooked.downs[layer]
            down.weight[:, index] = 0  # the last thing that this model is used for
    edited, _ = _with_and_without(hooked, neurons, ids)
    return [
        BenchRow(
            name="native_callback_relative_error_of_effect",
            value=_off(scaled - plain, hooks_scaled - hooks_plain),
            unit="",
            goal="<= 1e-3",
            note="against torch's hooks, both in float32",
        ),
        BenchRow(
            name="torch_hooks_decode_ratio",
            value=float(np.median([scaled / plain for plain, scaled in seconds])),
            unit="x",
            note=f"{1e3 * np.median([plain for plain, _ in seconds]) / STEPS:.1f} ms a token",
        ),
        BenchRow(
            name="torch_hooks_relative_error_of_effect",
            value=_off(hooks_scaled - hooks_plain, edited - hooks_plain),
            unit="",
            goal="<= 1e-3",
            note="against a model whose columns of W_down are zero",
        ),
    ]


def _with_and_without(backend: Backend, neurons: Neurons, ids: np.ndarray) -> list[Logits]:
    """Logits of the model as it is, and with the neurons silenced."""
    exchange = PromptResponse((int(ids[0]),), tuple(ids[1:].tolist()))
    found = []
    for factors in ({}, dict.fromkeys(neurons, 0.0)):
        with backend.scale(factors):
            found += [logits for _, logits in backend.logits([exchange])]
    return found


def _decoding(
    backend: TorchBackend, neurons: Neurons, ids: np.ndarray
) -> list[tuple[float, float]]:
    """Seconds of the tokens after the prompt, without hooks and with, in turns."""
    decoding = backend.decoding()

    def steps(factors: Mapping[tuple[int, int], float]) -> float:
        decoding.start([tuple(ids[:PROMPT].tolist())])
        with backend.scale(factors):
            return seconds_of(
                lambda: [
                    decoding.step(np.array([0]), ids[i : i + 1]) for i in range(PROMPT, len(ids))
                ]
            )

    silenced = dict.fromkeys(neurons, 0.0)
    return [(steps({}), steps(silenced)) for _ in range(_PAIRS + 1)][1:]  # the first warms up
