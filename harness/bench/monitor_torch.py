"""What watching costs in torch: a token of `generate` inside a TorchMonitor, and outside."""

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers.generation.streamers import BaseStreamer

from harness.bench.base import BenchRow
from harness.models.sources import resolve_model
from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.hooks import DownHooks
from hq.monitor import TorchMonitor
from hq.neurons.neuron_set import Neuron, NeuronSet

_LAYERS = 5
_WATCHED = 8  # neurons a layer

Ids = Int[np.ndarray, " token"]


def rows(
    model: str, prompt: Ids, text: Ids, rounds: int, rng: np.random.Generator
) -> list[BenchRow]:
    """At fp16 on a CPU: answers to `prompt` that are as long as `text`, and `text` itself."""
    with TorchBackend(resolve_model(model), "fp16", device="cpu") as backend:
        return [
            *_some_neurons(backend, prompt, len(text), rounds, rng),
            _all_neurons(backend, prompt, text, max(rounds // 2, 2)),
        ]


def _some_neurons(
    backend: TorchBackend, prompt: Ids, steps: int, rounds: int, rng: np.random.Generator
) -> list[BenchRow]:
    """Greedy answers inside a monitor of 5 or all layers, and outside, in an order drawn anew."""
    count = backend.identity.n_layers
    five = sorted(rng.choice(count, min(_LAYERS, count), replace=False).tolist())
    kinds: dict[str, AbstractContextManager[object]] = {
        "plain": nullcontext(),
        "5_layers": _monitor(backend, five, rng),
        "all_layers": _monitor(backend, range(count), rng),
    }
    ids = torch.from_numpy(prompt)[None]
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    length = {"min_new_tokens": steps, "max_new_tokens": steps}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name in rng.permutation(list(kinds)):
            clock = _Clock()
            with kinds[name]:
                backend.model.generate(**asked, **length, streamer=clock)
            times[name].append(float(np.median(clock.seconds)))
    medians = {name: np.array(found[1:]) for name, found in times.items()}  # the first warms up
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
    """Of some neurons of these layers."""
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


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is not followed
    """When each token came; between two lie a forward pass and what `generate` does around it."""

    def __init__(self) -> None:
        self._ticks: list[float] = []

    @property
    def seconds(self) -> Float[np.ndarray, " step"]:
        """A token after the first, which waited for the prompt."""
        return np.diff(self._ticks[1:])

    def put(self, value: object) -> None:
        """The prompt, then each token."""
        self._ticks.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def _all_neurons(backend: TorchBackend, prompt: Ids, text: Ids, rounds: int) -> BenchRow:
    """The same question of a trace's hooks, which read `sum`-CETT of all neurons."""
    hooks = DownHooks(
        backend.downs,
        [torch.from_numpy(backend.norms[s]) for s in backend.identity.space.slices],
        ("sum",),
    )
    decoding = backend.decoding()
    row = np.array([0])

    def seconds(watched: bool) -> float:
        decoding.start([tuple(prompt.tolist())])
        started = time.perf_counter()
        for token in np.split(text, len(text)):
            if watched:
                with hooks, torch.inference_mode():
                    hooks.expect(torch.ones(1, 1, 1))
                    decoding.step(row, token)
                    hooks.collect()
            else:
                decoding.step(row, token)
        return time.perf_counter() - started

    pairs = [(seconds(False), seconds(True)) for _ in range(rounds + 1)][1:]
    return BenchRow(
        name="torch_decode_ratio_all_layers",
        value=float(np.median([watched / plain for plain, watched in pairs])),
        unit="x",
        note=f"{1e3 * np.median([plain for plain, _ in pairs]) / len(text):.1f} ms a token at fp16",
    )
