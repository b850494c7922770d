"""Making a bundle: a finished run's neurons with thresholds and measures for one model file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np

from harness.deploy.combining import Comparison, combine, compare, uncertainties
from harness.deploy.model_card import model_card
from harness.experiments.detect.compare import storage
from harness.stages.alarms import (
    DomainAnswers,
    Scores,
    domain_of,
    domains,
    require_calibration,
)
from harness.stages.identify import PROBES_FILE, Rows
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
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.stats.auroc import estimate_auroc
from hq.storage.atomic import require_free

SAMPLES_FILE = "samples.jsonl"
Scorer = Literal["h-neurons", "combined"]


@dataclass(frozen=True)
class FinishedRun:
    """The parts of a finished study that a bundle needs."""

    provenance: Provenance
    probes: CrossFit
    samples: list[Sample]

    @property
    def neurons(self) -> NeuronSet:
        """The set for use, which is fitted on all samples."""
        return self.probes.neurons

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a run's folder.

        Raises HQError if it is not a study's, or its files belong to different runs.
        """
        provenance = read_provenance(folder)
        if provenance["kind"] != "detect":
            raise HQError(f"{folder} is not the run of a study: give the folder of `hq study run`.")
        probes = CrossFit.load(folder / PROBES_FILE)
        samples = read_samples(folder / SAMPLES_FILE)
        require_separate(samples)
        if probes.neurons.provenance.get("samples") != samples_digest(samples):
            raise HQError(
                f"The neurons in {folder} were found on other answers than those in its "
                f"{SAMPLES_FILE}: run the study again."
            )
        return cls(provenance, probes, samples)

    @property
    def study(self) -> str:
        """Name of the study."""
        return str(self.provenance["study"])

    @property
    def seed(self) -> int:
        """Seed of the study."""
        return int(self.provenance["definition"]["seed"])


def make_bundle(
    run: FinishedRun,
    backend: LlamaBackend,
    false_alarms: float,
    into: Path,
    name: str,
    progress: Progress,
    scorer: Scorer = "h-neurons",
) -> None:
    """Write a bundle for the file that the backend runs.

    All samples are read in that file, each is scored out of fold, and thresholds are set on the
    scores of the right ones. So they are calibrated for this file, whatever quantization does to
    the scores. The measured rates are of thresholds that have not seen the sample's fold.

    Args:
        run: The finished run.
        backend: Runs the model file.
        false_alarms: The largest share of right answers that may be flagged, between 0 and 1.
        into: Folder of the bundle.
        name: Name of the bundle in logs.
        progress: Shows how many answers were read.
        scorer: What the bundle scores by: H-Neurons, or "combined" with token probabilities.

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
    require_calibration(run.samples, rows, false_alarms)
    if scorer == "combined" and neurons.tokens != "answer":
        raise HQError(
            f"The neurons of the run read the span {neurons.tokens!r}, and probabilities are "
            "combined with neurons that read 'answer': make the bundle with --scorer h-neurons."
        )
    with progress.task("read the answers", 2 * len(run.samples), "texts") as task:
        of_probe = _scores(backend, run.probes, run.samples, rows, task)
        uncertainty = uncertainties(backend, run.samples, task)
    combined = combine(of_probe, uncertainty, rows)
    comparison = compare(of_probe, uncertainty, combined.scores, rows)
    scores = combined.scores if scorer == "combined" else of_probe
    by_domain = {
        answers.name: _domain(answers, scores, false_alarms)
        for answers in domains(run.samples, rows, false_alarms)
    }
    facts = BundleFacts(
        name=name,
        hq=__version__,
        precision=backend.precision,
        compute=backend.compute,
        prompt=str(neurons.provenance.get("prompt", "chat")),
        model=model_file(backend.file, storage(backend.audit())),
        combination=combined.combination if scorer == "combined" else None,
    )
    validation = _validation(run, rows, scores, comparison)
    card = model_card(facts, neurons, by_domain, validation)
    # On the scale of the set for use, whose mean the precision shifts as well.
    known = scores.out_of_fold - scores.means[rows.folds] + scores.mean
    arrays = {
        "norms": neuron_norms(neurons, backend.file),
        "scores": np.sort(known),
        "right": np.sort(known[domain_of(run.samples, rows).right]),
    }
    write_bundle(into, facts, neurons, by_domain, validation, arrays, card)


def _domain(answers: DomainAnswers, scores: Scores, false_alarms: float) -> Domain:
    flags = scores.flags(answers.thresholds(scores, false_alarms), answers.rows.folds)
    return Domain(
        threshold=answers.threshold(scores, false_alarms),
        false_alarms=false_alarms,
        n=answers.units(answers.right),
        realised=answers.rate(answers.right, flags),
        detected=answers.rate(answers.wrong, flags),
    )


def _validation(run: FinishedRun, rows: Rows, scores: Scores, comparison: Comparison) -> Validation:
    return Validation(
        auroc=estimate_auroc(scores.out_of_fold, rows.y, rows.units, rows.folds),
        n=len(rows.y),
        entities=len(np.unique(rows.units)),
        hallucinated=int(rows.y.sum()),
        seed=run.seed,
        study=run.study,
        samples=samples_digest(run.samples),
        **comparison._asdict(),
    )


def _scores(
    backend: Backend, probes: CrossFit, samples: Sequence[Sample], rows: Rows, task: Task
) -> Scores:
    """Cross-fitted scores of the samples in the model that the backend runs."""
    neurons = probes.neurons
    values = np.zeros((len(samples), neurons.model.n_neurons), dtype=np.float32)
    texts = [sample.exchange for sample in samples]
    read: Features | None = None
    for batch in backend.trace(texts, (neurons.cett,), (neurons.tokens,)):
        read = batch.features(neurons.cett, neurons.tokens)
        values[batch.rows] = read.values
        task.advance(len(batch.rows))
    if read is None:
        raise HQError("The run has no samples: run the study again.")
    return Scores.of(probes, replace(read, values=values), rows)
