"""Bench `logits`: time and memory of reading logits over a large vocabulary.

The model has random weights and the shape of Gemma-3 270M, whose output head is 262,144 × 640: the
logits of one token take 1 MiB, and the head is most of a forward pass.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from harness.bench.base import BenchRow, in_new_process, random_texts, seconds_of
from harness.stages import uncertainty
from harness.store.progress import Task
from hq.backends.transformers.backend import TorchBackend
from hq.neurons.neuron_set import ModelIdentity

_SHAPE = {
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
}


class _Cost(NamedTuple):
    """Measurements of one process."""

    trace: float  # seconds
    reference: float  # seconds of stage `uncertainty` for the reference
    variant: float  # seconds of the stage with the divergence from that reference
    extra_mib: float  # peak memory of both stages, above that of the loaded model
    stored_mib: float  # size of the reference on disk
    divergence: float  # the largest divergence of the model from itself


def bench_logits(seed: int = 0, texts: int = 64, shape: dict[str, int] = _SHAPE) -> list[BenchRow]:
    """Measure the stage's time as a ratio to that of a trace. Takes about 2 minutes and 2 GB.

    Args:
        seed: Seed of the texts.
        texts: Number of answers, and of held-out texts.
        shape: Settings of the Gemma-3 configuration.
    """
    cost = in_new_process(_measure, seed, texts, shape)
    note = f"{texts} answers and {texts} texts, vocabulary {shape['vocab_size']:,}"
    return [
        BenchRow(
            name="logits_over_trace",
            value=cost.reference / cost.trace,
            unit="x",
            goal="<= 4",
            note=f"{note}; the trace takes {cost.trace:.1f} s",
        ),
        BenchRow(
            name="logits_over_trace_with_divergence",
            value=cost.variant / cost.trace,
            unit="x",
            note="the reference's logits are recomputed from its hidden states",
        ),
        BenchRow(
            name="peak_extra_mib",
            value=cost.extra_mib,
            unit="MiB",
            goal="<= 1024",
            note="resident memory minus that of the loaded model; a memory-mapped head counts",
        ),
        BenchRow(
            name="reference_stored_mib",
            value=cost.stored_mib,
            unit="MiB",
            note="head and hidden states; the size of the head does not depend on the texts",
        ),
        BenchRow(
            name="largest_divergence_from_itself",
            value=cost.divergence,
            unit="nats",
            goal="<= 1e-5",
            note="0 apart from rounding",
        ),
    ]


def _measure(seed: int, texts: int, shape: dict[str, int]) -> _Cost:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, _backend(Path(name), shape) as backend:
        # Lengths of short questions and answers.
        answers, held_out = (
            random_texts(np.random.default_rng(s), texts, shape["vocab_size"], (8, 20), (2, 10))
            for s in (seed, seed + 1)
        )
        trace = seconds_of(lambda: list(backend.trace([*answers, *held_out])))
        reference, variant = Path(name) / "reference", Path(name) / "variant"

        def stage(folder: Path, compared_with: Path | None) -> float:
            folder.mkdir()
            quiet = Task(None, "", 0, "texts")
            return seconds_of(
                lambda: uncertainty.measure(
                    folder, backend, answers, held_out, compared_with, quiet
                )
            )

        with _extra_mib() as extra:
            seconds = stage(reference, None), stage(variant, reference)
        stored = sum(path.stat().st_size for path in reference.iterdir()) / 2**20
        divergence = float(np.abs(uncertainty.read(variant).kl).max())
        return _Cost(trace, *seconds, extra[0], stored, divergence)


def _backend(folder: Path, shape: dict[str, int]) -> TorchBackend:
    """Write a checkpoint of random weights and load it."""
    config = Gemma3TextConfig(**shape, tie_word_embeddings=True)
    with torch.device("meta"):
        shapes = Gemma3ForCausalLM(config).state_dict()
    torch.manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, dtype=torch.float16).mul_(0.05)
        for name, tensor in shapes.items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    del weights
    config.save_pretrained(folder)
    identity = ModelIdentity(
        name="random",
        fingerprint="0" * 16,
        architecture=config.model_type,
        n_layers=shape["num_hidden_layers"],
        d_ff=shape["intermediate_size"],
    )
    return TorchBackend(folder, "fp16", device="cpu", model_identity=identity)


@contextmanager
def _extra_mib() -> Iterator[list[float]]:
    """A list with the MiB of resident memory by which this process grows within the context."""
    process, peak, over = psutil.Process(), [0.0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], (process.memory_info().rss - before) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
