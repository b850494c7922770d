"""Stage `resample`: fresh responses to the samples' questions, at each precision.

The labels of the samples come from other responses, which were drawn at FP16 with another seed: a
detector that compared an answer with those would read its own label.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from harness.experiments.detectors.section import DetectorsSection
from harness.stages import mapping
from harness.stages.graph import Graph
from harness.stages.loading import SPELLING
from harness.stages.sample import batches
from harness.stages.samples import Sample, read_samples
from harness.stages.select import SAMPLES_FILE
from harness.store.jsonl import append, parse, read_log
from harness.store.node import Node, Stage, Work
from hq.backends.opening import max_rows
from hq.tracing.sampling import Sampling, sample

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_FILE = "resampled.jsonl"
_SEED = 1_000_003  # is added to the study's seed, so that no response repeats one that gave a label


class Resampled(BaseModel):
    """The responses to one question: distinct texts, and how often each was drawn."""

    model_config = ConfigDict(frozen=True)

    id: str
    texts: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def draws(self) -> list[str]:
        """The text of every response."""
        return [t for t, k in zip(self.texts, self.counts, strict=True) for _ in range(k)]


def settings_of(m: "Materials", section: DetectorsSection) -> Sampling:
    """Return the study's settings of sampling, with another seed and number of responses."""
    seed = (m.study.seed + _SEED) % 2**32
    return replace(m.sampling, responses=section.responses, seed=seed)


def node(m: "Materials", precision: str, section: DetectorsSection) -> Node:
    """Declare fresh responses to the samples' questions."""
    graph = Graph(m)
    return Node(
        STAGE,
        m.models.parameters(precision, SPELLING)
        | m.stop_criteria.parameters
        | {"sampling": asdict(settings_of(m, section))},
        mapping.model_inputs(m, precision) | {"samples": graph.samples.output(SAMPLES_FILE)},
        precision,
        units=graph.trace(precision).units,
        unit="questions",
        memory=m.resident(precision),
    )


def make(work: "Work[Materials]") -> None:
    """Append the responses to a log, which is complete at the end."""
    m, precision = work.materials, str(work.node.precision)
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    settings = Sampling(**work.parameters["sampling"])
    log = work.folder / _FILE
    done = {record.id for record in read_log(log, Resampled)}
    left = [s for s in samples if s.id not in done]
    with work.task(len(samples), "questions") as task:
        task.advance(len(done))
        if not left:
            return
        decoding = mapping.backend(work).decoding()
        decoding.share([s.prompt_ids for s in samples])
        for batch in batches(left, max_rows(precision) // settings.responses):
            prompts = [(s.id, s.prompt_ids) for s in batch]
            trees = sample(decoding, prompts, settings, m.stop_criteria)
            append(
                log,
                [
                    Resampled(
                        id=tree.key,
                        texts=tuple(r.text.strip() for r in tree.finished),
                        counts=tuple(len(r.members) for r in tree.finished),
                    )
                    for tree in trees
                ],
            )
            task.advance(len(batch))


def read(folder: Path, samples: Sequence[Sample]) -> list[list[str]]:
    """Return the texts of all responses to each sample's question."""
    records = parse((folder / _FILE).read_text(encoding="utf-8"), Resampled)
    draws = {record.id: record.draws for record in records}
    return [draws[s.id] for s in samples]


STAGE = Stage("resample", make, sources=("hq.backends.opening",))
