"""Stage `identify`: from traces and labels to the probes of all folds and the set for use."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from harness.stages.samples import Sample, read_samples, samples_digest
from harness.stages.select import SAMPLES_FILE
from harness.stages.units import require_both_labels
from harness.store.environment import FIT, machine_class
from harness.store.node import Node, Stage, Work
from harness.store.progress import Task
from harness.studies.study import IdentifySection
from hq.errors import HQError
from hq.probe.cross_fit import CrossFit, Curves, cross_fit
from hq.probe.stability import STABLE, Stability, stability
from hq.storage.atomic import write_whole
from hq.tracing.traces import Traces, exchanges_digest

if TYPE_CHECKING:
    from harness.stages.materials import Materials

NEURONS_FILE = "neurons.json"
PROBES_FILE = "probes.json"
PATH_FILE = "path.csv"
STABILITY_FILE = "stability.csv"
_SUMMARY_FILE = "stability.json"


class StabilitySummary(NamedTuple):
    """Stability of the selection over random halves of the units."""

    subsamples: int
    mean_selected: float
    stable: int  # neurons with a selection frequency of STABLE or more
    expected_false: float  # bound on those among them that are not better than average


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
        about=" ".join(filter(None, (traces.precision, m.scope))),
        unit="fits",
        memory=8 * traces.disk,
    )


def make(work: "Work[Materials]") -> None:
    """Write the files of `find_neurons`."""
    parameters = work.parameters
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    section = IdentifySection.model_validate(parameters["identify"])
    with work.task(section.folds + 2, "fits") as task:
        traces, prompt = Traces.open(work.inputs["traces"]), parameters["prompt"]
        find_neurons(work.folder, traces, samples, section, parameters["seed"], prompt, task)


def find_neurons(
    folder: Path,
    traces: Traces,
    samples: Sequence[Sample],
    section: IdentifySection,
    seed: int,
    prompt: str = "",
    task: Task | None = None,
) -> CrossFit:
    """Identify neurons on all samples, and cross-fit the probes that have not seen a fold.

    Writes neurons.json (the set for use), probes.json (with the probe of every fold), path.csv (the
    curves from which C was chosen) and stability.csv (how often each neuron is selected).

    Args:
        folder: Where the files are written.
        traces: Traces of the samples.
        samples: The labelled samples.
        section: Settings of CETT and the fit.
        seed: Seed of the inner folds and of the halves.
        prompt: Form of the prompts, if known; a monitor uses the same form.
        task: Shows the number of finished fits: the set, one per fold, and the stability.

    Raises:
        HQError: If the traces are not of these samples, or if a fold lacks one of the labels.
    """
    require_same_tokens(traces, samples)
    rows = Rows(samples)
    features = traces.features(section.cett, section.tokens)
    other = traces.features(section.cett, "other") if section.labels == "3-vs-1" else None
    provenance = {
        "compute": traces.info.compute,
        "exchanges": traces.info.exchanges,
        "samples": samples_digest(samples),
        **({"prompt": prompt} if prompt else {}),
    }
    fitted, curves = cross_fit(
        features,
        rows.y,
        rows.units,
        rows.folds,
        repeats=section.repeats,
        max_fraction=section.max_fraction,
        seed=seed,
        other=other,
        provenance=provenance,
        finished=None if task is None else lambda: task.advance(1),
    )
    C = float(fitted.neurons.provenance["C"])
    selected = stability(features, rows.y, rows.units, C, seed=seed, other=other)
    folder.mkdir(parents=True, exist_ok=True)
    _write_path(folder / PATH_FILE, curves)
    _write_stability(folder, fitted, selected)
    fitted.save(folder / PROBES_FILE)
    fitted.neurons.save(folder / NEURONS_FILE)
    if task is not None:
        task.advance(1)
    return fitted


def read_stability(folder: Path) -> StabilitySummary:
    """Read the summary of the stability from the output of a finished node."""
    return StabilitySummary(**json.loads((folder / _SUMMARY_FILE).read_text(encoding="utf-8")))


def _write_path(path: Path, curves: Curves) -> None:
    """Write a row per C: of the fit on all samples, and of the fit without each fold."""
    named = [("all", curves.all)]
    named += [(f"without fold {fold}", c) for fold, c in enumerate(curves.without_fold)]
    rows = [{"samples": name, **point.model_dump()} for name, curve in named for point in curve]
    pl.DataFrame(rows).write_csv(path)


def _write_stability(folder: Path, fitted: CrossFit, selected: Stability) -> None:
    """Write a row per neuron that is selected in the set or at least in half of the halves."""
    neurons, space = fitted.neurons, fitted.neurons.model.space
    weights = dict(zip(neurons.flat.tolist(), neurons.neurons, strict=True))
    in_folds = Counter(flat for f in fitted.folds for flat in f.probe.flat.tolist())
    often = np.flatnonzero(selected.frequency >= 0.5).tolist()
    listed = np.array(sorted({*weights, *often}), dtype=np.int64)
    rows = [
        {
            "layer": layer,
            **({"expert": expert[0] if expert else None} if space.has_experts else {}),
            "index": index,
            "weight": weights[flat].weight if flat in weights else 0.0,
            "folds": in_folds[flat],
            "frequency": float(selected.frequency[flat]),
        }
        for flat, (layer, *expert, index) in zip(
            listed.tolist(), space.positions(listed), strict=True
        )
    ]
    pl.DataFrame(rows).write_csv(folder / STABILITY_FILE)
    summary = StabilitySummary(
        selected.subsamples,
        selected.mean_selected,
        selected.stable(STABLE),
        selected.expected_false(STABLE),
    )
    write_whole(folder / _SUMMARY_FILE, json.dumps(summary._asdict()) + "\n")


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


STAGE = Stage("identify", make, version=3, packages=FIT)
