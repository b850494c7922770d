"""Every compared column regresses under an injected fault, and none does in a healthy rerun.

A run of detect is written from synthetic activations with planted neurons. Its tables are
committed, and compared with those of the same run with one fault in the path of the monitor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from harness.check.acceptance import accept
from harness.check.limits import parse_limits
from harness.check.regress import compare
from harness.experiments import EXPERIMENTS
from harness.stages import alarms
from harness.stages.samples import Sample
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit, FoldProbe
from hq.stats.conformal import conformal_threshold
from tests.harness.synthetic_detect import D_FF, LAYERS, Run, healthy


def every_probe(fit: CrossFit, change: Callable[[NeuronSet], Mapping[str, object]]) -> CrossFit:
    """Return a cross-fit with some fields of each probe replaced."""

    def changed(probe: NeuronSet) -> NeuronSet:
        return probe.model_copy(update=change(probe))

    folds = tuple(
        FoldProbe(
            probe=changed(fold.probe),
            calibration={other: changed(probe) for other, probe in fold.calibration.items()},
        )
        for fold in fit.folds
    )
    return CrossFit(neurons=changed(fit.neurons), folds=folds)


def indices_shifted(run: Run) -> Run:
    """Probes read the neuron after each of their own."""

    def shift(probe: NeuronSet) -> Mapping[str, object]:
        moved = (n.model_copy(update={"index": (n.index + 1) % D_FF}) for n in probe.neurons)
        return {"neurons": tuple(sorted(moved, key=lambda n: (n.layer, n.index)))}

    return replace(run, probes=lambda fit, _: every_probe(fit, shift))


def scores_negated(run: Run) -> Run:
    """Decision values have the opposite sign."""
    score = NeuronSet.score

    def negated(neurons: NeuronSet, features: Features) -> np.ndarray:
        return -score(neurons, features)

    return replace(run, patches=(*run.patches, (NeuronSet, "score", negated)))


def packed_norms(run: Run) -> Run:
    """The norm of a packed NF4 weight has the shape (1,), and is broadcast to all neurons."""
    return replace(run, norms=run.norms | {"nf4": np.full((LAYERS, D_FF), 300.0)})


def norms_of_fp16(run: Run) -> Run:
    """Contributions at NF4 are computed with the norms of FP16."""
    return replace(run, norms=run.norms | {"nf4": run.norms["fp16"]})


def norms_of_another_layer(run: Run) -> Run:
    """CETT is computed with the norms of the layer before."""
    return replace(run, norms={p: np.roll(norms, 1, axis=0) for p, norms in run.norms.items()})


def served(name: str, instead: str) -> Callable[[Run], Run]:
    """Another precision runs under a name."""
    parts = ("h", "norms", "weights", "losses", "bits")

    def fault(run: Run) -> Run:
        return replace(
            run, **{part: (v := getattr(run, part)) | {name: v[instead]} for part in parts}
        )

    return fault


def thresholds_off(by: float, of: Literal["spread", "value"]) -> Callable[[Run], Run]:
    """All thresholds are off by a share of the scores' standard deviation, or of their value."""

    def moved(exact: float, scores: np.ndarray) -> float:
        return exact + by * (float(scores.std()) if of == "spread" else abs(exact))

    def conformal(scores: np.ndarray, *others: Any) -> float:
        return moved(conformal_threshold(scores, *others), scores)

    def probes(fit: CrossFit, features: Features) -> CrossFit:
        def move(probe: NeuronSet) -> Mapping[str, object]:
            scores = probe.score(features)
            return {"thresholds": {k: moved(v, scores) for k, v in probe.thresholds.items()}}

        return every_probe(fit, move)

    patched = (alarms, "conformal_threshold", conformal)
    return lambda run: replace(run, probes=probes, patches=(*run.patches, patched))


def changed_samples(run: Run, rows: Sequence[int], **changes: Callable[[Sample], object]) -> Run:
    """Return the run of some samples, with some of their fields replaced."""
    samples = [
        run.samples[i].model_copy(update={k: f(run.samples[i]) for k, f in changes.items()})
        for i in rows
    ]
    losses = {p: u._replace(entropy=u.entropy[rows]) for p, u in run.losses.items()}
    h = {p: values[rows] for p, values in run.h.items()}
    return replace(run, samples=samples, h=h, losses=losses)


def labels_flipped(run: Run) -> Run:
    """The labels of one fold are the opposite."""
    rows = range(len(run.samples))
    return changed_samples(run, rows, hallucinated=lambda s: s.hallucinated != (s.fold == 1))


def answers_leak(run: Run) -> Run:
    """Right and hallucinated answers differ in their words, as do their questions."""

    def marked(text: str, sample: Sample) -> str:
        return f"{text} {'surely' if sample.hallucinated and sample.fold else 'indeed'}"

    rows = range(len(run.samples))
    return changed_samples(
        run,
        rows,
        text=lambda s: marked(s.text, s),
        question=lambda s: marked(s.question, s),
        response_ids=lambda s: (*s.response_ids, *([4] if s.hallucinated else [4, 5])),
    )


def entropy_lost(run: Run) -> Run:
    """The entropy of the answers is that of other answers."""
    shuffled = np.random.default_rng(2).permutation(len(run.samples))
    losses = {p: u._replace(entropy=u.entropy[shuffled]) for p, u in run.losses.items()}
    return replace(run, losses=losses)


def units_not_linked(run: Run) -> Run:
    """Every two samples are a unit of their own, whatever their answer."""
    rows = range(len(run.samples))
    return changed_samples(run, rows, unit=lambda s: f"{s.unit} {int(s.id[1:]) // 2}")


def units_linked(run: Run) -> Run:
    """A third of the units of each fold are one unit."""
    rows = range(len(run.samples))
    return changed_samples(
        run, rows, unit=lambda s: f"f{s.fold}" if int(s.unit[1:]) % 3 == 0 else s.unit
    )


def relation_lost(run: Run) -> Run:
    """The questions of one relation are missing."""
    return changed_samples(run, [i for i, s in enumerate(run.samples) if s.relation != "r1"])


def neurons_replaced(run: Run) -> Run:
    """At NF4, a tenth of the neurons of a layer have weights of another model."""
    other = torch.Generator().manual_seed(9)
    first, *rest = run.weights["nf4"]
    parts = [part.clone() for part in (first.up, first.down.T, first.gate)]
    for part in parts:
        part[:5] = torch.randn(part[:5].shape, generator=other)
    up, down, gate = parts
    broken = first._replace(up=up, down=down.T, gate=gate)
    return replace(run, weights=run.weights | {"nf4": [broken, *rest]})


FAULTS: dict[str, Callable[[Run], Run]] = {
    "indices shifted by one": indices_shifted,
    "scores negated": scores_negated,
    "norms of packed weights": packed_norms,
    "norms of fp16 at nf4": norms_of_fp16,
    "norms of another layer": norms_of_another_layer,
    "nf4 served as fp16": served("fp16", "nf4"),
    "fp16 served as nf4": served("nf4", "fp16"),
    "fp4 served as nf4": served("nf4", "fp4"),
    "thresholds 10% of the spread higher": thresholds_off(0.1, "spread"),
    "thresholds 10% of the spread lower": thresholds_off(-0.1, "spread"),
    "thresholds 10% higher": thresholds_off(0.1, "value"),
    "thresholds 10% lower": thresholds_off(-0.1, "value"),
    "labels of one fold flipped": labels_flipped,
    "answers leak the label": answers_leak,
    "entropy of other answers": entropy_lost,
    "units not linked": units_not_linked,
    "units linked by mistake": units_linked,
    "one relation lost": relation_lost,
    "neurons replaced": neurons_replaced,
}
TOLERANCES = parse_limits(EXPERIMENTS["detect"].tolerances()).tolerances
COLUMNS = [(table, column) for table, columns in TOLERANCES.items() for column in columns]


def rounding(run: Run) -> Run:
    """Another processor rounds differently."""
    rng = np.random.default_rng(1)
    h = {p: v * (1 + 3e-5 * rng.standard_normal(v.shape)) for p, v in run.h.items()}
    return replace(run, h=h)


def one_pair_fewer(run: Run) -> Run:
    """A token that was sampled differently made one pair inconsistent."""
    return rounding(changed_samples(run, [i for i in range(len(run.samples)) if i not in (40, 41)]))


@pytest.fixture(scope="module")
def run() -> Run:
    return healthy()


@pytest.fixture(scope="module")
def committed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    accept(run.write(folder / "run"), folder / "results")
    return folder / "results"


@pytest.fixture(scope="module")
def regressed(
    run: Run, committed: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, set[tuple[str, str]]]:
    """The columns that regress under each fault."""
    folder = tmp_path_factory.mktemp("faults")
    columns = {}
    for name, fault in FAULTS.items():
        differences = compare(fault(run).write(folder / name), committed)
        columns[name] = {(d.table, d.column) for d in differences if d.regressed}
    return columns


@pytest.mark.parametrize("rerun", [rounding, one_pair_fewer])
def test_a_healthy_rerun_does_not_regress(rerun, run, committed, tmp_path):
    differences = compare(rerun(run).write(tmp_path / "run"), committed)
    assert {(d.table, d.column) for d in differences} == set(COLUMNS)
    assert [d for d in differences if d.regressed] == []


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_fault_turns_each_compared_column_red(table, column, regressed):
    assert any((table, column) in columns for columns in regressed.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen(fault, regressed):
    assert regressed[fault]


@pytest.mark.parametrize("fault", [name for name in FAULTS if name.startswith("thresholds")])
def test_thresholds_that_are_off_turn_measured_rates_red(fault, regressed):
    rates = {column for table, column in regressed[fault] if table == "alarms"}
    assert rates - {"threshold", "threshold_recalibrated"}
