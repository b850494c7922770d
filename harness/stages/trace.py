"""Stage `trace`: CETT of every neuron over the same token ids, at one precision."""

from collections.abc import Sequence
from pathlib import Path

from harness.store.progress import Task
from harness.store.store import Stage
from hq.backends.base import Backend
from hq.neurons.cett import Measure, Span
from hq.neurons.prompt_response import PromptResponse
from hq.tracing.traces import TraceWriter, describe

STAGE = Stage("trace", sources=("hq.backends.opening",))


def trace(
    folder: Path,
    backend: Backend,
    exchanges: Sequence[PromptResponse],
    measures: tuple[Measure, ...],
    spans: tuple[Span, ...],
    task: Task,
) -> None:
    """Write a folder of traces, or the batches that it lacks."""
    writer = TraceWriter(folder, describe(backend, exchanges, measures, spans))
    for batch in backend.trace(exchanges, measures, spans, skip=writer.done):
        writer.write(batch)
        task.advance(len(batch.rows))
    writer.close(backend.norms)
