"""Bench `logits`: seconds and memory of reading logits over a wide vocabulary.

The model has random weights and the shape of Gemma-3 270M, whose output head is 262,144 × 640: the
logits of one token take 1 MiB, and the head is most of a forward pass.
"""

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from harness.bench.base import BenchRow, bench, seconds_of
from harness.stages import uncertainty
from harness.store.progress import Task
from hq.backends.transformers.backend import TorchBackend
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse

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
    """What one process measured."""

    trace: float  # seconds
    reference: float  # seconds of stage `uncertainty` as the reference
    variant: float  # and with a divergence from that reference
    extra_mib: float  # peak memory of the last two, above that of the loaded model
    stored_mib: float  # what the reference keeps on disk
    divergence: float  # the largest, of the model from itself


@bench("logits")
def run(seed: int = 0, texts: int = 64, shape: dict[str, int] = _SHAPE) -> list[BenchRow]:
    """Times as ratios to that of a trace of the same texts. Takes about 2 minutes, 2 GB."""
    spawned = get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawned) as pool:
        cost = pool.submit(_measured, seed, texts, shape).result()
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
            note="the reference's logits of the texts are computed again from its hidden states",
        ),
        BenchRow(
            name="peak_extra_mib",
            value=cost.extra_mib,
            unit="MiB",
            goal="<= 1024",
            note="resident memory less what the loaded model has; a memory-mapped head counts",
        ),
        BenchRow(
            name="reference_stored_mib",
            value=cost.stored_mib,
            unit="MiB",
            note="head and hidden states; the head has the same size for any number of texts",
        ),
        BenchRow(
            name="largest_divergence_from_itself",
            value=cost.divergence,
            unit="nats",
            goal="<= 1e-5",
            note="0 but for rounding",
        ),
    ]


def _measured(seed: int, texts: int, shape: dict[str, int]) -> _Cost:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, _backend(Path(name), shape) as backend:
        answers, held_out = (_exchanges(seed + i, texts, shape["vocab_size"]) for i in range(2))
        trace = seconds_of(lambda: list(backend.trace([*answers, *held_out])))
        reference, variant = Path(name) / "reference", Path(name) / "variant"

        def stage(folder: Path, beside: Path | None) -> float:
            folder.mkdir()
            quiet = Task(None, "", 0, "texts")
            return seconds_of(
                lambda: uncertainty.measure(folder, backend, answers, held_out, beside, quiet)
            )

        with _extra_mib() as extra:
            seconds = stage(reference, None), stage(variant, reference)
        stored = sum(path.stat().st_size for path in reference.iterdir()) / 2**20
        divergence = float(np.abs(uncertainty.read(variant).kl).max())
        return _Cost(trace, *seconds, extra[0], stored, divergence)


def _backend(folder: Path, shape: dict[str, int]) -> TorchBackend:
    """A checkpoint of random weights, written and loaded."""
    config = Gemma3TextConfig(**shape, tie_word_embeddings=True)
    with torch.device("meta"):
        names = Gemma3ForCausalLM(config).state_dict()
    torch.manual_seed(0)
    drawn = {
        name: torch.randn(tensor.shape, dtype=torch.float16).mul_(0.05)
        for name, tensor in names.items()
        if name != "lm_head.weight"
    }
    save_file(drawn, folder / "model.safetensors", {"format": "pt"})
    del drawn
    config.save_pretrained(folder)
    identity = ModelIdentity(
        name="random",
        fingerprint="0" * 16,
        architecture=config.model_type,
        n_layers=shape["num_hidden_layers"],
        d_ff=shape["intermediate_size"],
    )
    return TorchBackend(folder, "fp16", device="cpu", model_identity=identity)


def _exchanges(seed: int, count: int, vocabulary: int) -> list[PromptResponse]:
    """Random texts of the lengths of short questions and answers."""
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(vocabulary, size=rng.integers(low, high)).tolist())

    return [PromptResponse(draw(8, 20), draw(2, 10)) for _ in range(count)]


@contextmanager
def _extra_mib() -> Iterator[list[float]]:
    """The most resident memory that this process gains while the context lasts, once it is over."""
    process, found, over = psutil.Process(), [0.0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.005):
            found[0] = max(found[0], (process.memory_info().rss - before) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
