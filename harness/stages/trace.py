"""Stage `trace`: CETT of every neuron over the same token ids, at one precision."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.stages import mapping, pack
from harness.stages.samples import read_tokens
from harness.stages.select import TOKENS_FILE
from harness.store.node import Node, Output, Stage, Work
from harness.store.progress import Task
from hq.backends.base import Backend
from hq.neurons.cett import Measure, Span
from hq.neurons.prompt_response import PromptResponse
from hq.tracing.traces import TraceWriter, describe

if TYPE_CHECKING:
    from harness.stages.materials import Materials


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
        disk=4 * arrays * n * m.model.n_neurons,
        memory=m.resident(precision),
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


STAGE = Stage("trace", make, sources=("hq.backends.opening",))
