"""Stage `identify`: from traces and labels to a NeuronSet with its threshold."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from harness.stages.sample import SAMPLES_FILE
from harness.stages.samples import Sample, read_samples, samples_digest
from harness.stages.units import require_both_labels
from harness.store.environment import FIT, machine_class
from harness.store.node import Node, Stage, Work
from harness.studies.study import IdentifySection
from hq.errors import HQError
from hq.probe.identify import identify_with_path
from hq.stats.thresholds import youden_threshold
from hq.tracing.traces import Traces, exchanges_digest

if TYPE_CHECKING:
    from harness.stages.materials import Materials

NEURONS_FILE = "neurons.json"
PATH_FILE = "path.csv"
THRESHOLD = "youden"


def node(m: "Materials", traces: Node, samples: Node) -> Node:
    """Declare the neurons that separate the samples at the precision of the traces."""
    return Node(
        STAGE,
        {
            "machine": machine_class(),
            "identify": m.study.identify.model_dump(),
            "prompt": m.study.prompt.form,
            "seed": m.study.seed,
        },
        {"traces": traces.output(), "samples": samples.output(SAMPLES_FILE)},
        about=str(traces.precision),
        unit="fits",
        memory=8 * traces.disk,
    )


def make(work: "Work[Materials]") -> None:
    """Write neurons.json and path.csv."""
    parameters = work.parameters
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    section = IdentifySection.model_validate(parameters["identify"])
    with work.task(1, "fits") as task:
        traces, prompt = Traces.open(work.inputs["traces"]), parameters["prompt"]
        find_neurons(work.folder, traces, samples, section, parameters["seed"], prompt)
        task.advance(1)


def find_neurons(
    folder: Path,
    traces: Traces,
    samples: Sequence[Sample],
    section: IdentifySection,
    seed: int,
    prompt: str = "",
) -> None:
    """Write neurons.json and the regularisation path, path.csv.

    The probe is fitted on the train split only, its threshold on the calibration split only.

    Args:
        folder: Where the files are written.
        traces: Traces of the samples.
        samples: The labelled samples.
        section: Settings of CETT and the fit.
        seed: Seed of the folds.
        prompt: Form of the prompts, if known; a monitor uses the same form.

    Raises:
        HQError: If the traces are not of these samples, or if a split lacks one of the labels.
    """
    require_same_tokens(traces, samples)
    rows = Rows(samples)
    features = traces.features(section.cett, section.tokens)
    other = traces.features(section.cett, "other") if section.labels == "3-vs-1" else None
    neurons, path = identify_with_path(
        features[rows.train],
        rows.y[rows.train],
        folds=section.folds,
        groups=rows.components[rows.train],
        max_fraction=section.max_fraction,
        seed=seed,
        other=None if other is None else other[rows.train],
    )
    scores = neurons.score(features[rows.calibration])
    threshold = youden_threshold(scores, rows.y[rows.calibration])
    provenance = neurons.provenance | {
        "precision": traces.info.precision,
        "compute": traces.info.compute,
        "exchanges": traces.info.exchanges,
        "samples": samples_digest(samples),
        **({"prompt": prompt} if prompt else {}),
    }
    neurons.model_copy(
        update={"thresholds": {THRESHOLD: threshold}, "provenance": provenance}
    ).save(folder / NEURONS_FILE)
    pl.DataFrame([point.model_dump() for point in path]).write_csv(folder / PATH_FILE)


class Rows:
    """Labels, units and folds of the samples, as arrays with one row per sample.

    Raises HQError if a fold lacks a label.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.y = np.array([sample.hallucinated for sample in samples], dtype=np.int64)
        self.units = np.array([sample.unit for sample in samples])
        self.folds = np.array([sample.fold for sample in samples], dtype=np.int64)
        require_both_labels(self.folds.tolist(), self.y.tolist())


def require_same_tokens(traces: Traces, samples: Sequence[Sample]) -> None:
    """Raises HQError if the traces are of other token ids than the samples."""
    if traces.info.exchanges != exchanges_digest([sample.exchange for sample in samples]):
        raise HQError(
            f"{traces.folder} holds traces of other token ids than these samples: trace these "
            "samples at that precision."
        )


STAGE = Stage("identify", make, packages=FIT)
