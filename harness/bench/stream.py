"""Bench `stream`: memory and time of traces that read a model layer by layer.

Random Llama models have the shapes of real ones. Each is traced at fp16 and nf4 in one pass in a
new process; time is compared with that of reading the files and of the matrix products alone.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig

from harness.bench.base import BenchRow, in_new_process, random_texts, seconds_of
from harness.bench.memory import anonymous_mib
from harness.bench.stream_model import forget, write_llama
from harness.bench.wide_model import peak_mib
from hq.backends.streamed.backend import StreamedBackend
from hq.backends.streamed.cost import Cost, Shape, cost, this_cpu
from hq.backends.streamed.passes import Passes
from hq.models.checkpoint import architecture_at, text_config
from hq.neurons.neuron_set import ModelIdentity

SHAPES: Mapping[str, Mapping[str, int]] = {
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
}
_PRECISIONS = ("fp16", "nf4")
_LIMIT_GIB = 4


class _Run(NamedTuple):
    """Measurements of one process."""

    seconds: float  # of the pass at all precisions
    processor: float  # seconds of the processor, divided by the number of threads
    reading: float  # seconds to read the files from disk
    anonymous: float  # peak MiB of memory that no file backs
    resident: float  # peak MiB, mapped pages included
    from_disk: bool  # whether files were removed from the system's cache before
    cost: Cost


def bench_stream(
    seed: int = 0,
    shapes: Mapping[str, Mapping[str, int]] = SHAPES,
    samples: int = 8,
    precisions: tuple[str, ...] = _PRECISIONS,
) -> list[BenchRow]:
    """Measure memory and time of one pass. Takes about 15 minutes and 17 GB of disk space.

    Args:
        seed: Seed of weights and texts.
        shapes: Settings of a Llama config, by name.
        samples: Number of texts, of 30 to 45 tokens.
        precisions: What the pass traces.
    """
    return [
        row
        for name, shape in shapes.items()
        for row in _rows(name, LlamaConfig(**shape), seed, samples, precisions)
    ]


def _rows(
    name: str, config: LlamaConfig, seed: int, samples: int, precisions: tuple[str, ...]
) -> list[BenchRow]:
    with tempfile.TemporaryDirectory(prefix="hq-stream-") as temporary:
        folder = Path(temporary)
        needed = _checkpoint_bytes(config) + (1 << 30)
        free = shutil.disk_usage(folder).free
        if needed > free:
            note = f"needs {needed / 2**30:.0f} GiB of disk space, and {free / 2**30:.0f} are free"
            return [BenchRow(name=f"{name}_peak_gib", value=None, unit="GiB", note=note)]
        size = write_llama(folder, config, seed)
        run = in_new_process(_measure, folder, seed, samples, precisions)
    computing = run.cost.products
    source = "disk" if run.from_disk else "the system's cache"
    note = f"{config.num_hidden_layers} layers, {size / 2**30:.1f} GiB, {samples} texts, " + (
        " and ".join(precisions) + " in one pass"
    )
    return [
        BenchRow(
            name=f"{name}_peak_gib",
            value=run.anonymous / 1024,
            unit="GiB",
            goal=f"<= {_LIMIT_GIB}",
            note=f"{note}; with pages of files {run.resident / 1024:.2f}",
        ),
        BenchRow(
            name=f"{name}_seconds_per_sample",
            value=run.seconds / samples,
            unit="s",
            note=f"{run.seconds:.0f} s in all",
        ),
        BenchRow(
            name=f"{name}_over_reading",
            value=run.seconds / run.reading,
            unit="x",
            note=f"reading the layers alone from {source} takes {run.reading:.1f} s",
        ),
        BenchRow(
            name=f"{name}_over_products",
            value=run.processor / computing,
            unit="x",
            note=f"{run.processor:.0f} s of the processor, the matrix products alone "
            f"{computing:.0f} s",
        ),
        BenchRow(
            name=f"{name}_predicted_memory",
            value=run.cost.memory / 2**20 / run.anonymous,
            unit="x",
            note="cost model over measurement",
        ),
        BenchRow(
            name=f"{name}_predicted_time",
            value=run.cost.seconds / run.processor,
            unit="x",
            note="cost model over the processor's time",
        ),
    ]


def _checkpoint_bytes(config: LlamaConfig) -> int:
    """An upper bound of the bytes of the checkpoint."""
    d, d_ff = int(config.hidden_size or 0), int(config.intermediate_size or 0)
    layers = int(config.num_hidden_layers or 0) * (4 * d * d + 3 * d * d_ff)
    return 2 * (layers + 2 * int(config.vocab_size or 0) * d)


def _measure(folder: Path, seed: int, samples: int, precisions: tuple[str, ...]) -> _Run:
    config, family = text_config(folder), architecture_at(folder)
    rng = np.random.default_rng(seed)
    texts = random_texts(rng, samples, config.vocab_size, (24, 33), (6, 13))
    identity = ModelIdentity(
        name="random",
        fingerprint="0" * 16,
        architecture=config.model_type,
        n_layers=config.num_hidden_layers,
        d_ff=config.intermediate_size,
    )
    with _peak() as peak, tempfile.TemporaryDirectory(dir=folder) as values:
        passes = Passes(Path(values), precisions)
        backends = [
            StreamedBackend(folder, precision, "cpu", model_identity=identity, passes=passes)
            for precision in precisions
        ]
        for backend in backends:
            backend.audit()  # imports what the precision needs

        def trace() -> None:
            for backend in backends:
                for _ in backend.trace(texts):
                    pass

        from_disk = forget(folder)
        started = time.process_time()
        seconds = seconds_of(trace)
        processor = (time.process_time() - started) / torch.get_num_threads()
    resident = peak_mib()
    forget(folder)
    reading = seconds_of(lambda: _read(folder, config.num_hidden_layers))
    tokens = float(np.mean([len(text) for text in texts]))
    predicted = cost(
        Shape.of(config, family), precisions, samples, tokens, this_cpu(_disk(folder, reading))
    )
    return _Run(seconds, processor, reading, peak[0], resident, from_disk, predicted)


def _disk(folder: Path, seconds: float) -> float:
    layers = sorted(folder.glob("*.safetensors"))[: text_config(folder).num_hidden_layers]
    return sum(file.stat().st_size for file in layers) / seconds


def _read(folder: Path, layers: int) -> None:
    buffer = bytearray(1 << 24)
    for file in sorted(folder.glob("*.safetensors"))[:layers]:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


@contextmanager
def _peak() -> Iterator[list[float]]:
    """A list with the peak MiB of anonymous memory of this process within the context."""
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], anonymous_mib(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
