"""Stage `trace`: CETT of every neuron over the same token ids, at one precision."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.stages import mapping, pack, streaming
from harness.stages.samples import read_tokens
from harness.stages.select import TOKENS_FILE
from harness.store.node import Node, Output, Shard, Sharding, Stage, Work
from harness.store.progress import Task
from hq.backends.base import Backend, TraceBatch
from hq.errors import HQError
from hq.neurons.cett import Measure, Span
from hq.neurons.prompt_response import PromptResponse
from hq.storage.atomic import atomic_file, write_whole
from hq.tracing.traces import TraceInfo, TraceWriter, describe

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_SHARD_FILE = "shard.json"
_NORMS_FILE = "norms.npy"
_BATCHES = "batch-*.npz"


def node(
    m: "Materials",
    precision: str,
    tokens: Output,
    n: int,
    measures: tuple[Measure, ...],
    spans: tuple[Span, ...],
    about: str = "",
    making: int = 0,
) -> Node:
    """Declare the traces of at most `n` prompts and responses, which are in the file `tokens`.

    `making` is that of the model, for a precision with several packed checkpoints.
    """
    arrays = len(measures) * len(spans)
    return Node(
        STAGE,
        m.models.parameters(precision)
        | {"measures": measures, "spans": spans, "storage": m.study.identify.storage},
        mapping.model_inputs(m, precision, making) | {"tokens": tokens},
        precision,
        pack.about(making, about),
        units=n,
        unit="texts",
        disk=streaming.disk(m, precision, n, arrays),
        memory=streaming.memory(m, precision),
        whole=m.models.streams(precision),  # each part would read the whole checkpoint
        materials=m,
    )


def make(work: "Work[Materials]") -> None:
    """Write the traces.

    If there is no prompt and response, the folder stays empty.
    """
    exchanges = read_tokens(work.inputs["tokens"] / TOKENS_FILE)
    if exchanges:
        measures, spans = tuple(work.parameters["measures"]), tuple(work.parameters["spans"])
        with work.task(len(exchanges), "texts") as task:
            work.materials.models.show_layers(task)
            trace(work.folder, mapping.backend(work), exchanges, measures, spans, task)


def trace(
    folder: Path,
    backend: Backend,
    exchanges: Sequence[PromptResponse],
    measures: tuple[Measure, ...],
    spans: tuple[Span, ...],
    task: Task,
) -> None:
    """Write a folder that `Traces` opens, after the batches of a killed run."""
    writer = TraceWriter(folder, describe(backend, exchanges, measures, spans))
    for batch in backend.trace(exchanges, measures, spans, skip=writer.done):
        writer.write(batch)
        task.advance(len(batch.rows))
    writer.close(backend.norms)


def make_shard(work: "Work[Materials]", shard: Shard, _: Sequence[Path]) -> None:
    """Write the batches whose numbers belong to a shard, after those of a killed run."""
    exchanges = read_tokens(work.inputs["tokens"] / TOKENS_FILE)
    if not exchanges:
        return
    folder, backend = work.folder, mapping.backend(work)
    measures, spans = tuple(work.parameters["measures"]), tuple(work.parameters["spans"])
    info = describe(backend, exchanges, measures, spans)
    done = {int(path.stem.partition("-")[2]) for path in folder.glob(_BATCHES)}
    # There are at most as many batches as texts.
    skip = frozenset(n for n in range(len(exchanges)) if n in done or not shard.has(n))
    for batch in backend.trace(exchanges, measures, spans, skip=skip):
        target = folder / f"batch-{batch.number}.npz"
        with atomic_file(target) as draft, open(draft, "wb") as file:
            np.savez(file, rows=batch.rows, values=batch.values)
    np.save(folder / _NORMS_FILE, backend.norms)
    write_whole(folder / _SHARD_FILE, info.model_dump_json())


def merge(work: "Work[Materials]", shards: Sequence[Path]) -> None:
    """Write the traces from the batches of all shards. Raises HQError if workers differ."""
    texts = [p.read_text(encoding="utf-8") for f in shards if (p := f / _SHARD_FILE).is_file()]
    if len(set(texts)) > 1:
        raise HQError("Two workers loaded the model differently: give all the same hq and machine.")
    for text in texts[:1]:
        info = TraceInfo.model_validate_json(text)
        writer = TraceWriter(work.folder, info)
        for path in (path for folder in shards for path in folder.glob(_BATCHES)):
            with np.load(path, allow_pickle=False) as stored:
                rows, values = stored["rows"], stored["values"]
            number = int(path.stem.partition("-")[2])
            if number not in writer.done:
                about = (info.measures, info.spans, info.model, info.precision)
                writer.write(TraceBatch(number, rows, values, *about, frozenset(info.missing)))
        writer.close(np.load(shards[0] / _NORMS_FILE, allow_pickle=False))


STAGE = Stage(
    "trace",
    make,
    sources=("hq.backends.opening",),
    sharding=Sharding(make_shard, merge),
    streams=True,
)
