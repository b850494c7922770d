"""Drift of a bundle or of a run's neurons, from files of traces and samples.

Everything that can be wrong with the files is checked before a score is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from harness.deploy.bundling import SAMPLES_FILE
from harness.stages.alarms import Scores, require_calibration
from harness.stages.drift import answers_at, paired_reference, separate_reference
from harness.stages.identify import NEURONS_FILE, PROBES_FILE, Rows, require_same_tokens
from harness.stages.samples import Sample, read_samples, require_origin, samples_digest
from hq.errors import HQError
from hq.monitor.bundle import Bundle
from hq.monitor.drift import (
    Drift,
    Margins,
    MonitoredAnswers,
    MonitorReference,
    measure_drift,
    require_enough,
)
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.stats.intervals import combined_interval
from hq.storage.verified_folder import MANIFEST
from hq.tracing.traces import Traces

FALSE_ALARM_RATE = 0.1
"""The promised rate for a set of neurons; a bundle has its own."""


@dataclass(frozen=True)
class DriftFiles:
    """The files that drift is measured from."""

    probe: Path  # a bundle, a neurons.json, or the folder that has one
    new: Path  # traces of the new answers
    samples: Path | None = None  # of the new answers, with labels and units
    reference: Path | None = None  # traces of the answers that the neurons were identified on
    reference_samples: Path | None = None  # those answers; default: beside the neurons


@dataclass(frozen=True)
class MeasuredDrift:
    """The drift, and what was compared."""

    reference: str  # precision
    new: str  # precision
    paired: bool
    drift: Drift


def drift_of_files(
    files: DriftFiles,
    margins: Margins,
    *,
    false_alarms: float | None = None,
    labelled: bool = True,
    revision: bool = False,
    seed: int = 0,
) -> MeasuredDrift:
    """Return the drift of a bundle, or of a set of neurons with its cross-fitted probes.

    Args:
        files: The files.
        margins: The largest negligible changes.
        false_alarms: The promised rate of a set of neurons; a bundle has its own.
        labelled: Whether to use the labels of the new answers.
        revision: Whether the new traces may be of another revision of the model.
        seed: Seed of the permutations.

    Raises:
        HQError: If the files do not fit together, or the answers are too few or of one class.
    """
    traces = Traces.open(files.new)
    if (files.probe / MANIFEST).is_file():
        return _of_bundle(files, traces, margins, false_alarms, labelled, revision, seed)
    return _of_neurons(files, traces, margins, false_alarms, labelled, revision, seed)


def _of_bundle(
    files: DriftFiles,
    traces: Traces,
    margins: Margins,
    false_alarms: float | None,
    labelled: bool,
    revision: bool,
    seed: int,
) -> MeasuredDrift:
    if files.reference or files.reference_samples or false_alarms is not None:
        raise HQError(
            f"{files.probe} is a bundle, which has its reference and its false-alarm rate: leave "
            "out --reference, --reference-samples and --false-alarms."
        )
    bundle = Bundle.load(files.probe)
    if bundle.facts.combination is not None:
        raise HQError(
            f"The bundle {bundle.name} scores H-Neurons and token probabilities together, and "
            "traces have no probabilities: give a bundle that was made with --scorer h-neurons, "
            "or the folder of its run."
        )
    neurons, domain = bundle.neurons, bundle.domain()
    features = _features(neurons, traces, revision, f"The bundle {bundle.name}")
    if neurons.provenance.get("exchanges") == traces.info.exchanges:
        raise HQError(
            f"{traces.folder} holds the answers that the neurons of {bundle.name} were fitted on: "
            "trace answers to other questions, or give the folder of the run in place of the "
            "bundle."
        )
    new = _NewAnswers.of(files.samples, traces, labelled)
    scores = neurons.score(features)
    share = float((bundle.scores >= domain.threshold).mean())
    units = bundle.validation.entities  # which of its scores are of one unit is not known
    reference = MonitorReference(
        promised=domain.false_alarms,
        calibrated=domain.n,
        scores=np.asarray(bundle.scores, dtype=np.float64),
        flagged=combined_interval(share, units, [(share * (1 - share) / units, units - 1.0)]),
        auroc=bundle.validation.auroc,
    )
    answers = new.scored(scores, domain.threshold)
    drift = measure_drift(reference, answers, margins, seed)
    return MeasuredDrift(bundle.precision, traces.info.precision, False, drift)


def _of_neurons(
    files: DriftFiles,
    traces: Traces,
    margins: Margins,
    false_alarms: float | None,
    labelled: bool,
    revision: bool,
    seed: int,
) -> MeasuredDrift:
    path = files.probe / NEURONS_FILE if files.probe.is_dir() else files.probe
    probes = CrossFit.load(path.with_name(PROBES_FILE))
    neurons = NeuronSet.load(path)
    if probes.neurons != neurons:
        raise HQError(
            f"{path} and the {PROBES_FILE} beside it are of different fits: give the folder of one "
            "run or of one `hq identify`."
        )
    if files.reference is None:
        raise HQError(
            f"{path} is a set of neurons, which needs --reference: traces of the answers that it "
            "was identified on, at the precision of that time."
        )
    known = Traces.open(files.reference)
    before = _features(neurons, known, False, str(path))
    after = _features(neurons, traces, revision, str(path))
    samples = read_samples(files.reference_samples or path.with_name(SAMPLES_FILE))
    require_origin(neurons, samples, known)
    require_same_tokens(known, samples)
    rows = Rows(samples)
    promised = FALSE_ALARM_RATE if false_alarms is None else false_alarms
    require_calibration(samples, rows, promised)
    paired = traces.info.exchanges == known.info.exchanges
    if paired:
        _require_same_samples(files.samples, samples)
        require_enough(rows.units, rows.y if labelled else None)
        scores = Scores.of(probes, before, rows)
        new_scores = Scores.of(probes, after, rows)
        reference = paired_reference(samples, rows, scores, promised)
        answers = answers_at(samples, rows, scores, new_scores, promised, labelled)
    else:
        new = _NewAnswers.of(files.samples, traces, labelled)
        new.require_unseen(samples)
        scores = Scores.of(probes, before, rows)
        reference, threshold = separate_reference(samples, rows, scores, promised)
        answers = new.scored(neurons.score(after), threshold)
    drift = measure_drift(reference, answers, margins, seed)
    return MeasuredDrift(known.info.precision, traces.info.precision, paired, drift)


@dataclass(frozen=True, eq=False)
class _NewAnswers:
    """Units of the new answers, and their labels if known."""

    samples: Sequence[Sample]  # empty without a file of samples
    units: Shaped[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"] | None

    @classmethod
    def of(cls, path: Path | None, traces: Traces, labelled: bool) -> "_NewAnswers":
        """Read samples; without a file, each text is a unit of its own, without a label."""
        if path is None:
            new = cls((), np.array([f"text {i}" for i in range(traces.info.n)]), None)
        else:
            samples = read_samples(path)
            require_same_tokens(traces, samples)
            labels = np.array([sample.hallucinated for sample in samples], dtype=np.int64)
            units = np.array([sample.unit for sample in samples])
            new = cls(samples, units, labels if labelled else None)
        require_enough(new.units, new.labels)
        return new

    def require_unseen(self, known: Sequence[Sample]) -> None:
        """Raises HQError if a prompt is among those that the neurons were identified on."""
        prompts = {sample.prompt_ids for sample in known}
        seen = [sample.id for sample in self.samples if sample.prompt_ids in prompts]
        if seen:
            raise HQError(
                f"{len(seen)} of the {len(self.samples)} new answers are to questions that the "
                f"neurons were identified on, {seen[0]!r} first: remove them, or trace exactly the "
                "answers of the reference."
            )

    def scored(self, scores: Float[np.ndarray, " n"], threshold: float) -> MonitoredAnswers:
        """Return the answers with these scores."""
        return MonitoredAnswers(scores, scores >= threshold, self.units, self.labels)


def _require_same_samples(path: Path | None, known: Sequence[Sample]) -> None:
    """Raises HQError if samples are given that differ from those of the reference."""
    if path is not None and samples_digest(read_samples(path)) != samples_digest(known):
        raise HQError(
            f"{path} has other labels, units or folds than the samples that the neurons were "
            "identified on, whose token ids were traced: leave out --samples."
        )


def _features(neurons: NeuronSet, traces: Traces, revision: bool, name: str) -> Features:
    """Return what the set reads. Raises HQError if the traces are of another model."""
    model, own = traces.info.model, neurons.model
    features = traces.features(neurons.cett, neurons.tokens)
    same_shape = (model.architecture, model.space) == (own.architecture, own.space)
    try:
        neurons.require(model, name)
    except HQError as error:
        if not same_shape:
            raise
        if not revision:
            raise HQError(
                f"{traces.folder} holds traces of {model.name} ({model.fingerprint}), and {name} "
                f"belongs to {own.name} ({own.fingerprint}): if the first is another revision of "
                "the second, add --revision."
            ) from error
        features = replace(features, model=own)
    neurons.require_present(features.missing, features.precision)
    return features
