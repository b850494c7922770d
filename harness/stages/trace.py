"""Stage `trace`: CETT of every neuron over the same token ids, at one precision."""

from collections.abc import Sequence
from pathlib import Path

from harness.progress import Task
from harness.store import Stage
from hq.backends.base import Backend, Exchange
from hq.cett import Measure, Span
from hq.traces import TraceWriter, describe

STAGE = Stage("trace", sources=("hq.backends.opening",))


def trace(
    folder: Path,
    backend: Backend,
    exchanges: Sequence[Exchange],
    measures: tuple[Measure, ...],
    spans: tuple[Span, ...],
    task: Task,
) -> None:
    """Writes a folder that `hq.traces.Traces` opens; goes on with the batches that it lacks."""
    writer = TraceWriter(folder, describe(backend, exchanges, measures, spans))
    for batch in backend.trace(exchanges, measures, spans, skip=writer.done):
        writer.write(batch)
        task.advance(len(batch.rows))
    writer.close(backend.norms)
