"""Bench `deploy`: four ways to suppress neurons, their cost per token and their agreement.

Baked weights and the adapter are compared with scaling at run time by the native callback on the
same file, the callback with torch's hooks, and the hooks with a model whose weights were edited.
The effect is the change of all logits of a text from those of the unscaled model.
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

from harness.bench.base import BenchRow, alternate, median_first, median_ratio, seconds_of
from harness.bench.decode_timing import PROMPT, STEPS, decode_ratio, make_contexts, time_decodes
from harness.models.packaged import EMBEDDED_NAME
from harness.models.sources import gguf_of, resolve_model
from hq.backends.base import Backend
from hq.backends.llamacpp.backend import LlamaBackend
from hq.backends.transformers.backend import TorchBackend
from hq.gguf.write import write_gguf
from hq.llamacpp.context import Context
from hq.neurons.factors import Factors
from hq.neurons.prompt_response import PromptResponse
from hq.neurons.space import Position
from hq.storage.copying import copy_to_disk
from hq.suppress.bake import bake
from hq.suppress.lora.gguf import write_gguf_adapter as write_adapter

_LAYERS = 5
_NEURONS = 4  # per layer
_OTHER_ALPHAS = (0.5, 0.3)  # besides 0
_BAKES = 5
_PAIRS = 3  # of decodes in torch
_DECODE_GOAL = "<= 1.02"
_SIZES = {"tokens": PROMPT + STEPS, "batch": PROMPT + STEPS}

Neurons = list[tuple[int, int]]
Logits = Float[np.ndarray, "token vocab"]


def bench_deploy(seed: int = 0, rounds: int = 6, model: str = EMBEDDED_NAME) -> list[BenchRow]:
    """Suppress 20 random neurons in 5 layers in four ways. Takes about 3 minutes and 4 GB.

    Args:
        seed: Seed of the neurons, the tokens and the order.
        rounds: Timed rounds.
        model: A checkpoint, a GGUF file or the embedded model.
    """
    rng, source = np.random.default_rng(seed), gguf_of(model)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with LlamaBackend(source) as backend:
            neurons = _random_neurons(backend, rng)
            ids = rng.integers(5, backend.model.vocabulary, PROMPT + STEPS)
            write_adapter(backend.file, dict.fromkeys(neurons, 0.0), folder / "adapter.gguf")
            bake_seconds = _bake_seconds(source, folder / "baked.gguf", neurons)
            agreement = _agreement(backend, folder, neurons, ids)
        times = _times(folder, source, neurons, ids, rounds, rng)
        checkpoint = resolve_model(model)
        with TorchBackend(checkpoint, device="cpu") as hooked:
            torch_rows = _torch_rows(hooked, checkpoint, folder, neurons, ids)
    plain = times.pop("plain")
    ratios = {
        name: decode_ratio(
            f"{name}_decode_ratio", seconds, plain, _DECODE_GOAL, "ms of CPU a token"
        )
        for name, seconds in times.items()
    }
    return [
        *(ratios["baked"], agreement["baked"], bake_seconds),
        *(ratios["lora"], agreement["lora"]),
        ratios["native_callback"],
        *torch_rows,
    ]


def _random_neurons(backend: LlamaBackend, rng: np.random.Generator) -> Neurons:
    layers, width = backend.identity.n_layers, backend.identity.d_ff
    chosen = sorted(rng.choice(layers, min(_LAYERS, layers), replace=False).tolist())
    return [(layer, int(i)) for layer in chosen for i in rng.choice(width, _NEURONS, replace=False)]


def _bake_seconds(source: Path, into: Path, neurons: Neurons) -> BenchRow:
    """Time baking, and leave the baked file `into`."""
    baked, copied = [], []
    for _ in range(_BAKES):
        into.unlink(missing_ok=True)
        baked.append(seconds_of(lambda: bake(source, into, dict.fromkeys(neurons, 0.0))))
        copied.append(seconds_of(lambda: copy_to_disk(source, into.with_name("copy.gguf"))))
    return BenchRow(
        name="bake_seconds",
        value=float(np.median(baked)),
        unit="s",
        note=f"{source.stat().st_size / 1e6:.0f} MB, synced; a copy alone takes "
        f"{np.median(copied):.2f} s",
    )


# --- agreement


def _agreement(
    backend: LlamaBackend, folder: Path, neurons: Neurons, ids: np.ndarray
) -> dict[str, BenchRow]:
    """Compare baked weights and the adapter with scaling at run time, on the same file."""
    model = backend.model
    with model.context(None, **_SIZES) as context:
        plain = _logits(context, ids)
    adapter = model.adapter(folder / "adapter.gguf")
    differences: dict[str, dict[float, float]] = {"baked": {}, "lora": {}}
    errors: dict[str, dict[float, float]] = {"baked": {}, "lora": {}}
    for alpha in (0.0, *_OTHER_ALPHAS):
        factors: dict[Position, float] = dict.fromkeys(neurons, alpha)
        context, _ = backend.context(len(ids), 1, len(ids))
        with context, backend.scale(factors):
            scaled = _logits(context, ids)
        with model.context(None, **_SIZES) as context:
            context.adapt(adapter, 1 - alpha)
            variants = {"lora": _logits(context, ids)}
        path = folder / ("baked.gguf" if alpha == 0 else f"baked-{alpha}.gguf")
        if not path.exists():
            bake(backend.file.path, path, factors)
        with LlamaBackend(path) as baked, baked.model.context(None, **_SIZES) as context:
            variants["baked"] = _logits(context, ids)
        for name, logits in variants.items():
            differences[name][alpha] = float(np.abs(logits - scaled).max())
            errors[name][alpha] = _relative_error(logits - plain, scaled - plain)
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
    """Logits at every token: the prompt is read at once, the tokens after it one by one."""
    parts = []
    for start, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, len(ids)))]:
        positions = np.arange(start, end)
        zeros = np.zeros_like(positions)
        parts.append(context.decode(ids[start:end], positions, zeros, zeros + 1).copy())
    return np.concatenate(parts)


def _relative_error(logits: Logits, expected: Logits) -> float:
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))


# --- time


def _times(
    folder: Path,
    source: Path,
    neurons: Neurons,
    ids: np.ndarray,
    rounds: int,
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "copy round step"]]:
    """Time decodes of the four ways and of the plain model.

    Every context loads a file of its own: the address of the weights changes a token's time too,
    and contexts that share a file would share its cached weights.
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

        contexts = make_contexts(
            {
                "plain": partial(decoding, source),
                "baked": partial(decoding, folder / "baked.gguf"),
                "lora": adapted,
                "native_callback": called_back,
            }
        )
        # llama.cpp runs in this thread only, so CPU time excludes other processes' load.
        return time_decodes(contexts, ids, rounds, rng, clock=time.thread_time)


# --- torch


def _torch_rows(
    hooked: TorchBackend, checkpoint: Path, folder: Path, neurons: Neurons, ids: np.ndarray
) -> list[BenchRow]:
    """Compare torch's hooks with the callback, on a file of the same float32 weights."""
    write_gguf(checkpoint, folder / "f32.gguf", "f32", hooked.identity)
    with LlamaBackend(folder / "f32.gguf") as watched:
        plain, scaled = _with_and_without(watched, neurons, ids)
    hooks_plain, hooks_scaled = _with_and_without(hooked, neurons, ids)
    pairs = _decode_seconds(hooked, neurons, ids)
    with torch.no_grad():
        for layer, index in neurons:
            down: Any = hooked.downs[layer]
            down.weight[:, index] = 0  # the model is not used unedited after this
    edited, _ = _with_and_without(hooked, neurons, ids)
    return [
        BenchRow(
            name="native_callback_relative_error_of_effect",
            value=_relative_error(scaled - plain, hooks_scaled - hooks_plain),
            unit="",
            goal="<= 1e-3",
            note="against torch's hooks, both in float32",
        ),
        BenchRow(
            name="torch_hooks_decode_ratio",
            value=median_ratio(pairs),
            unit="x",
            note=f"{1e3 * median_first(pairs) / STEPS:.1f} ms a token",
        ),
        BenchRow(
            name="torch_hooks_relative_error_of_effect",
            value=_relative_error(hooks_scaled - hooks_plain, edited - hooks_plain),
            unit="",
            goal="<= 1e-3",
            note="against a model with the columns of W_down set to zero",
        ),
    ]


def _with_and_without(backend: Backend, neurons: Neurons, ids: np.ndarray) -> list[Logits]:
    """Logits of the unscaled model, and of the model with the neurons silenced."""
    text = PromptResponse((int(ids[0]),), tuple(ids[1:].tolist()))
    plain_and_scaled = []
    silent: dict[Position, float] = dict.fromkeys(neurons, 0.0)
    for factors in ({}, silent):
        with backend.scale(factors):
            plain_and_scaled += [logits for _, logits in backend.logits([text])]
    return plain_and_scaled


def _decode_seconds(
    backend: TorchBackend, neurons: Neurons, ids: np.ndarray
) -> list[tuple[float, float]]:
    """Seconds of the tokens after the prompt, without and with hooks."""
    decoding = backend.decoding()

    def seconds(factors: Factors) -> float:
        decoding.start([tuple(ids[:PROMPT].tolist())])
        with backend.scale(factors):
            return seconds_of(
                lambda: [
                    decoding.step(np.array([0]), ids[i : i + 1]) for i in range(PROMPT, len(ids))
                ]
            )

    silenced: dict[Position, float] = dict.fromkeys(neurons, 0.0)
    return alternate(partial(seconds, {}), partial(seconds, silenced), _PAIRS)
