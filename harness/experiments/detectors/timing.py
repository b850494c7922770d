"""Stage `timing`: how long each kind of detector takes beside plain generation, at each precision.

Answers to a few questions are generated greedily, and everything a detector needs beyond that is
timed on the same questions, in the same process. Probes are timed as a second reading of the
answer, which is an upper bound: a monitor reads hidden states while the answer is generated
(`hq bench monitor`).
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.experiments.detectors import resampling, verification
from harness.experiments.detectors.confidence import p_true_exchanges
from harness.experiments.detectors.registry import Need
from harness.experiments.detectors.section import DetectorsSection
from harness.stages import mapping
from harness.stages.graph import Graph
from harness.stages.loading import SPELLING
from harness.stages.sample import batches
from harness.stages.samples import Sample, read_samples
from harness.stages.select import SAMPLES_FILE
from harness.store.node import Node, Stage, Work
from harness.store.progress import Progress
from hq.backends.base import Decoding
from hq.backends.opening import max_rows
from hq.tracing.sampling import Sampling, StopCriteria, sample

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_FILE = "timing.json"
_ROWS = 32
Seconds = dict[str, float]
"""Seconds per answer of plain generation ("plain"), and of what each kind of detector adds."""


class _WithEntropy:
    """A decoding that also computes the entropy of every distribution."""

    def __init__(self, inner: Decoding) -> None:
        self._inner = inner

    def share(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Compute a shared prefix."""
        self._inner.share(prompts)

    def start(self, prompts: Sequence[tuple[int, ...]]) -> Float[Tensor, "row vocab"]:
        """Process prompts."""
        return self._read(self._inner.start(prompts))

    def step(
        self, parents: Int[np.ndarray, " row"], tokens: Int[np.ndarray, " row"]
    ) -> Float[Tensor, "row vocab"]:
        """Append tokens."""
        return self._read(self._inner.step(parents, tokens))

    def _read(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(dim=-1)
        return logits


def node(m: "Materials", precision: str, section: DetectorsSection) -> Node:
    """Declare the times of a precision."""
    graph = Graph(m)
    return Node(
        STAGE,
        m.models.parameters(precision, SPELLING)
        | m.stop_criteria.parameters
        | {"section": section.model_dump(), "max_new_tokens": m.study.sampling.max_new_tokens},
        mapping.model_inputs(m, precision) | {"samples": graph.samples.output(SAMPLES_FILE)},
        precision,
        units=section.timed,
        unit="questions",
        memory=m.resident(precision),
    )


def make(work: "Work[Materials]") -> None:
    """Write the seconds per answer."""
    m = work.materials
    section = DetectorsSection.model_validate(work.parameters["section"])
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    step = max(1, len(samples) // section.timed)
    asked = samples[::step][: section.timed]
    with work.task(len(asked), "questions") as task:
        backend = mapping.backend(work)
        exchanges = [s.exchange for s in asked]
        p_true = p_true_exchanges(m, asked)
        new = (section.verification_tokens, m.study.sampling.max_new_tokens)
        greedy = Sampling(1, 0.0, max_new_tokens=m.study.sampling.max_new_tokens)
        drawn = resampling.settings_of(m, section)
        rows = max(1, min(_ROWS, max_rows(backend.precision) // section.responses))

        def generate(settings: Sampling, wrap: Callable[[Decoding], Decoding]) -> None:
            _generate(wrap(backend.decoding()), asked, settings, m.stop_criteria, rows)

        def chain() -> None:
            quiet = Progress(quiet=True).task("", 3 * len(asked), "texts")
            with tempfile.TemporaryDirectory() as folder, quiet as silent:
                verification.verify(m, backend, asked, Path(folder), new, silent)

        generate(greedy, lambda d: d)  # warm-up
        plain = _seconds(lambda: generate(greedy, lambda d: d))
        seconds: Seconds = {
            "plain": plain,
            "logits": max(0.0, _seconds(lambda: generate(greedy, _WithEntropy)) - plain),
            "none": _seconds(lambda: list(backend.trace(exchanges, ("sum",), ("answer",)))),
            "states": _seconds(lambda: list(backend.hidden_states(exchanges))),
            "pass": _seconds(lambda: list(backend.logits(p_true))),
            "chain": _seconds(chain),
            "samples": _seconds(lambda: generate(drawn, lambda d: d)),
        }
        task.advance(len(asked))
    per_answer = {name: value / len(asked) for name, value in seconds.items()}
    (work.folder / _FILE).write_text(json.dumps(per_answer) + "\n", encoding="utf-8")


def read(folder: Path) -> Seconds:
    """Read the output of a finished node."""
    seconds: Seconds = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return seconds


def ratio(seconds: Seconds, need: Need) -> float:
    """Return the time of generation with a detector of this kind, relative to generation alone."""
    return 1 + seconds[need] / seconds["plain"]


def _generate(
    decoding: Decoding,
    samples: Sequence[Sample],
    settings: Sampling,
    criteria: StopCriteria,
    rows: int,
) -> None:
    decoding.share([s.prompt_ids for s in samples])
    for batch in batches(samples, rows):
        list(sample(decoding, [(s.id, s.prompt_ids) for s in batch], settings, criteria))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


STAGE = Stage("timing", make, sources=("hq.backends.opening",), volatile=frozenset({_FILE}))
