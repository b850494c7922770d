"""Making a bundle: a finished run's neurons with thresholds and measures for one model file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from hq.stats.bootstrap import bootstrap_auroc
from jaxtyping import Float, Int

from harness.deploy.model_card import model_card
from harness.experiments.detect.alarms import Answers, answers_of, domains
from harness.experiments.detect.compare import storage
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.samples import Sample, read_samples, require_separate, samples_digest
from harness.store.progress import Progress, Task
from harness.tables.provenance import Facts as Provenance
from harness.tables.provenance import read_provenance
from hq import __version__
from hq.backends.base import Backend
from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.monitor.bundle import (
    BUNDLE_NAME,
    BundleFacts,
    Domain,
    Validation,
    model_file,
    neuron_norms,
    write_bundle,
)
from hq.neurons.neuron_set import NeuronSet
from hq.stats.conformal import require_enough
from hq.storage.atomic import require_free

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class FinishedRun:
    """The parts of a finished study that a bundle needs."""

    provenance: Provenance
    neurons: NeuronSet
    samples: list[Sample]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a run's folder.

        Raises HQError if it is not a study's, or its files belong to different runs.
        """
        provenance = read_provenance(folder)
        if provenance["kind"] != "detect":
            raise HQError(f"{folder} is not the run of a study: give the folder of `hq study run`.")
        neurons = NeuronSet.load(folder / NEURONS_FILE)
        samples = read_samples(folder / SAMPLES_FILE)
        require_separate(samples)
        if neurons.provenance.get("samples") != samples_digest(samples):
            raise HQError(
                f"The neurons in {folder} were found on other answers than those in its "
                f"{SAMPLES_FILE}: run the study again."
            )
        return cls(provenance, neurons, samples)

    @property
    def study(self) -> str:
        """Name of the study."""
        return str(self.provenance["study"])

    @property
    def seed(self) -> int:
        """Seed of the study."""
        return int(self.provenance["definition"]["seed"])

    @property
    def replicates(self) -> int:
        """Number of bootstrap replicates."""
        return int(self.provenance["definition"]["compare"]["replicates"])


def make_bundle(
    run: FinishedRun,
    backend: LlamaBackend,
    false_alarms: float,
    into: Path,
    name: str,
    progress: Progress,
) -> None:
    """Write a bundle for the file that the backend runs.

    The answers of the calibration and test splits are read in that file, and thresholds are set on
    the labels of the calibration split. So the bound on false alarms holds for this file, whatever
    quantization does to the scores.

    Args:
        run: The finished run.
        backend: Runs the model file.
        false_alarms: The largest share of right answers that may be flagged, between 0 and 1.
        into: Folder of the bundle.
        name: Name of the bundle in logs.
        progress: Shows how many answers were read.

    Raises:
        HQError: Before any answer is read, if the file is of another model, the calibration
            answers are too few, the name is invalid, or `into` exists.
    """
    require_free(into)
    if not re.fullmatch(BUNDLE_NAME, name):
        raise HQError(
            f"{name!r} is not a valid name for a bundle: use small letters, digits, dots, dashes "
            "and underscores."
        )
    neurons, rows = run.neurons, Rows(run.samples)
    neurons.require(backend.identity, "The run")
    all_answers = answers_of(run.samples, rows)
    require_enough(all_answers.entities(all_answers.right), false_alarms)
    held_out = np.union1d(rows.calibration, rows.test)
    with progress.task("read the answers", len(held_out), "texts") as task:
        scores = _scores(backend, neurons, run.samples, held_out, task)
    by_domain = {
        answers.domain: _domain(answers, scores, false_alarms, run.seed)
        for answers in domains(run.samples, rows, false_alarms)
    }
    facts = BundleFacts(
        name=name,
        hq=__version__,
        precision=backend.precision,
        compute=backend.compute,
        prompt=str(neurons.provenance.get("prompt", "chat")),
        model=model_file(backend.file, storage(backend.audit())),
    )
    validation = _validation(run, rows, scores)
    card = model_card(facts, neurons, by_domain, validation)
    arrays = {
        "norms": neuron_norms(neurons, backend.file),
        "scores": np.sort(scores[rows.calibration]),
        "right": np.sort(scores[all_answers.right]),
    }
    write_bundle(into, facts, neurons, by_domain, validation, arrays, card)


def _domain(
    answers: Answers, scores: Float[np.ndarray, " n"], false_alarms: float, seed: int
) -> Domain:
    threshold = answers.threshold(scores, false_alarms)
    realised, detected = (
        answers.flagged(rows, scores, threshold, seed) if len(rows) else None
        for rows in (answers.test_right, answers.test_wrong)
    )
    return Domain(
        threshold=threshold,
        false_alarms=false_alarms,
        n=answers.entities(answers.right),
        realised=realised,
        detected=detected,
    )


def _validation(run: FinishedRun, rows: Rows, scores: Float[np.ndarray, " n"]) -> Validation:
    y, components = rows.y[rows.test], rows.components[rows.test]
    return Validation(
        auroc=bootstrap_auroc(scores[rows.test], y, run.seed, run.replicates, groups=components),
        n=len(y),
        entities=len(np.unique(components)),
        hallucinated=int(y.sum()),
        seed=run.seed,
        study=run.study,
        samples=samples_digest(run.samples),
    )


def _scores(
    backend: Backend,
    neurons: NeuronSet,
    samples: Sequence[Sample],
    chosen: Int[np.ndarray, " chosen"],
    task: Task,
) -> Float[np.ndarray, " n"]:
    """Scores of the chosen samples, indexed as all samples; NaN for the others."""
    scores = np.full(len(samples), np.nan)
    texts = [samples[row].exchange for row in chosen]
    for batch in backend.trace(texts, (neurons.cett,), (neurons.tokens,)):
        cett = batch.features(neurons.cett, neurons.tokens)
        scores[chosen[batch.rows]] = neurons.score(cett)
        task.advance(len(batch.rows))
    return scores
