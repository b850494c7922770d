"""Stage `uncertainty`: entropy of answers, and loss and divergence on held-out text.

The entropy of the answers' tokens is a baseline of detection. The reference precision stores the
last hidden states of the held-out text and its output head, from which its logits are recomputed:
the divergence is exact, and less is stored than log-probabilities of the whole vocabulary.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from pydantic import BaseModel, ConfigDict

from harness.stages import mapping, pack, streaming
from harness.stages.samples import read_tokens
from harness.stages.select import TOKENS_FILE
from harness.store.jsonl import append, read_log
from harness.store.node import Node, Output, Stage, Work
from harness.store.progress import Task
from hq.backends.base import Backend, Predictions
from hq.backends.batching import shared_prefix
from hq.models.head import ReferenceLogits
from hq.neurons.prompt_response import PromptResponse
from hq.stats.intervals import Estimate, estimate
from hq.tracing.traces import exchanges_digest

if TYPE_CHECKING:
    from harness.stages.materials import Materials

BATCHES_FILE = "batches.jsonl"
_ARRAYS_FILE = "uncertainty.npz"
_SPEED_FILE = "speed.json"
_Part = Literal["answers", "texts"]


class Uncertainty(NamedTuple):
    """The output of the stage."""

    entropy: Float[np.ndarray, " sample"]  # mean over the answer's tokens, in nats
    nll: Float[np.ndarray, " text"]  # mean over the text's tokens, in nats
    kl: Float[np.ndarray, " text"]  # mean KL(reference ‖ this) over the text's tokens, in nats
    tokens: Float[np.ndarray, " text"]  # number of tokens of each text
    tokens_per_second: float  # of prompts, on this machine


class UncertaintyBatch(BaseModel):
    """The results of one batch, a record of the log of an unfinished node."""

    model_config = ConfigDict(frozen=True)

    part: _Part
    number: int
    rows: tuple[int, ...]
    entropy: tuple[float, ...]
    nll: tuple[float, ...]
    kl: tuple[float, ...]  # zeros without a reference
    seconds: float


def node(
    m: "Materials",
    precision: str,
    tokens: Output,
    n: int,
    reference: Node | None,
    making: int = 0,
) -> Node:
    """Declare the uncertainty of at most `n` answers and of the study's held-out texts.

    `reference` is the node of the reference precision; None for the reference itself.
    """
    inputs = mapping.model_inputs(m, precision, making) | {"tokens": tokens}
    if reference is not None:
        inputs["reference"] = reference.output()
    return Node(
        STAGE,
        m.models.parameters(precision) | {"texts": exchanges_digest(m.texts)},
        inputs,
        precision,
        pack.about(making),
        units=n + len(m.texts),
        unit="texts",
        memory=streaming.memory(m, precision),
    )


def make(work: "Work[Materials]") -> None:
    """Write the arrays, and for the reference its hidden states and output head."""
    m, precision = work.materials, work.node.precision
    answers = read_tokens(work.inputs["tokens"] / TOKENS_FILE)
    total = len(answers) + len(m.texts)
    with work.task(total, "texts", f"logits {precision}") as task:
        backend, reference = mapping.backend(work), work.inputs.get("reference")
        m.models.show_layers(task)
        measure(work.folder, backend, answers, m.texts, reference, task)


def measure(
    folder: Path,
    backend: Backend,
    answers: Sequence[PromptResponse],
    texts: Sequence[PromptResponse],
    reference: Path | None,
    task: Task,
) -> None:
    """Write the arrays of the stage, after the batches in the log of a killed run.

    `reference` is the output folder of the reference precision; None for the reference itself.
    """
    lengths = [len(text.response) for text in texts]
    reference_logits = None if reference is None else ReferenceLogits.load(reference, lengths)
    of_answers = _read(folder, "answers", backend, answers, None, task)
    of_texts = _read(folder, "texts", backend, texts, reference_logits, task)
    if reference is None:
        _write_reference(folder, backend, of_texts, lengths)
    np.savez(
        folder / _ARRAYS_FILE,
        entropy=_by_row(of_answers, "entropy"),
        nll=_by_row(of_texts, "nll"),
        kl=_by_row(of_texts, "kl"),
        tokens=np.array(lengths, dtype=float),
    )
    prefix = len(shared_prefix([answer.prompt for answer in answers]))  # computed once
    computed = prefix + sum(len(answer) - prefix for answer in answers)
    speed = {"tokens_per_second": computed / sum(batch.seconds for batch in of_answers)}
    (folder / _SPEED_FILE).write_text(json.dumps(speed), encoding="utf-8")
    # The log is removed first: a run that is killed after that starts again.
    (folder / BATCHES_FILE).unlink()
    for batch in of_texts:
        _hidden_file(folder, batch.number).unlink(missing_ok=True)


def _read(
    folder: Path,
    part: _Part,
    backend: Backend,
    exchanges: Sequence[PromptResponse],
    reference: ReferenceLogits | None,
    task: Task,
) -> list[UncertaintyBatch]:
    """Return every batch of the exchanges; missing ones are computed and appended to the log."""
    log = folder / BATCHES_FILE
    batches = [batch for batch in read_log(log, UncertaintyBatch) if batch.part == part]
    task.advance(sum(len(batch.rows) for batch in batches))
    done = frozenset(batch.number for batch in batches)
    started = time.perf_counter()
    for predictions in backend.predictions(exchanges, reference, done):
        if part == "texts" and reference is None and predictions.hidden is not None:
            np.save(_hidden_file(folder, predictions.number), predictions.hidden)
        batch = _batch(part, predictions, time.perf_counter() - started)
        append(log, [batch])
        batches.append(batch)
        task.advance(len(batch.rows))
        started = time.perf_counter()
    return sorted(batches, key=lambda batch: batch.number)


def _batch(part: _Part, predictions: Predictions, seconds: float) -> UncertaintyBatch:
    kl = (
        np.zeros(len(predictions.rows))
        if predictions.kl is None
        else predictions.means(predictions.kl)
    )
    return UncertaintyBatch(
        part=part,
        number=predictions.number,
        rows=tuple(predictions.rows.tolist()),
        entropy=tuple(predictions.means(predictions.entropy).tolist()),
        nll=tuple((-predictions.means(predictions.log_prob)).tolist()),
        kl=tuple(kl.tolist()),
        seconds=seconds,
    )


def _by_row(
    batches: Sequence[UncertaintyBatch], name: Literal["entropy", "nll", "kl"]
) -> Float[np.ndarray, " row"]:
    """Return one value per row, in the order of the rows."""
    values = np.zeros(sum(len(batch.rows) for batch in batches))
    for batch in batches:
        values[list(batch.rows)] = getattr(batch, name)
    return values


def _hidden_file(folder: Path, number: int) -> Path:
    return folder / f"hidden-{number}.npy"


def _write_reference(
    folder: Path, backend: Backend, batches: Sequence[UncertaintyBatch], lengths: Sequence[int]
) -> None:
    """Write the hidden states in the order of the texts, and the output head."""
    starts = np.cumsum([0, *lengths]).tolist()
    parts = [np.load(_hidden_file(folder, batch.number)) for batch in batches]
    hidden = np.empty((starts[-1], parts[0].shape[1]), dtype=np.float32)
    for batch, states in zip(batches, parts, strict=True):
        begin = 0
        for row in batch.rows:
            end = begin + lengths[row]
            hidden[starts[row] : starts[row + 1]] = states[begin:end]
            begin = end
    ReferenceLogits(hidden, starts, backend.head).save(folder)


def perplexity(
    nll: Float[np.ndarray, " text"],
    tokens: Float[np.ndarray, " text"],
    groups: Shaped[np.ndarray, " text"] | None,
) -> Estimate:
    """Return exp of the mean loss per token; units are texts, or groups of texts.

    The interval is that of the mean loss, transformed, so both of its limits are positive.
    """
    share = tokens / tokens.sum()
    loss = estimate(lambda w: w @ (nll * share) / (w @ share), len(share), groups, "perplexity")
    value, low, high = np.exp([loss.value, loss.low, loss.high]).tolist()
    se = None if loss.se is None else value * loss.se
    return Estimate(value=value, low=low, high=high, n=loss.n, se=se, df=loss.df)


def read(folder: Path) -> Uncertainty:
    """Read the output of a finished node."""
    arrays = np.load(folder / _ARRAYS_FILE, allow_pickle=False)
    speed = json.loads((folder / _SPEED_FILE).read_text(encoding="utf-8"))
    return Uncertainty(
        arrays["entropy"], arrays["nll"], arrays["kl"], arrays["tokens"], speed["tokens_per_second"]
    )


STAGE = Stage(
    "uncertainty",
    make,
    sources=("hq.backends.opening",),
    volatile=frozenset({_SPEED_FILE}),
    streams=True,
)
