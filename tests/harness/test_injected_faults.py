"""Every compared column regresses under an injected fault, and none does in a healthy rerun.

A run of detect is written from synthetic activations with planted neurons. Its tables are
committed, and compared with those of the same run with one fault in the path of the monitor.
"""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from harness.check.acceptance import accept
from harness.check.regress import compare
from harness.experiments import EXPERIMENTS
from harness.experiments.detect import alarms
from harness.experiments.detect import compare as compare_stage
from harness.experiments.detect.compare import Comparison, alignment, design, selection
from harness.experiments.detect.tables import TABLES
from harness.stages import mapping
from harness.stages.identify import Rows, StabilitySummary
from harness.stages.samples import Sample, samples_digest
from harness.stages.uncertainty import Uncertainty
from harness.store.progress import Task
from harness.studies.study import CompareSection
from harness.tables.files import write_tables
from hq.models.audit import AuditRow
from hq.models.ffn_weights import FFN
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from hq.probe.cross_fit import CrossFit, FoldProbe, cross_fit
from hq.stats.conformal import conformal_threshold
from hq.tracing.traces import TraceInfo, Traces, exchanges_digest

LAYERS, D_FF, D_MODEL, FOLDS = 2, 32, 24, 5
MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=LAYERS, d_ff=D_FF)
PRECISIONS = ("fp16", "nf4")
BITS = {"fp16": 16.0, "nf4": 4.5, "fp4": 4.25}
PLANTED = {0: (3, 11, 30), 1: (5, 22, 27)}
ANSWERS, PER_ANSWER = 30, 8  # half of the responses with an answer are hallucinated


@dataclass(frozen=True)
class Run:
    """What the tables of a run are computed from, by precision."""

    samples: list[Sample]
    h: dict[str, np.ndarray]  # |h|, [n, layers, d_ff]
    norms: dict[str, np.ndarray]  # [layers, d_ff]
    weights: dict[str, list[FFN]]
    losses: dict[str, Uncertainty]
    bits: dict[str, float]
    probes: Callable[[CrossFit, Features], CrossFit] = lambda fit, _: fit
    patches: tuple[tuple[object, str, object], ...] = ()
    fitted: dict[bytes, CrossFit] = field(default_factory=dict)  # shared, as fits take seconds

    def write(self, folder: Path) -> Path:
        """Write the tables of all precisions."""
        contributions = {p: self.h[p] * self.norms[p] for p in PRECISIONS}
        traces = {p: self._traces(folder / p, p, contributions[p]) for p in PRECISIONS}
        fits = {
            p: self.probes(self._fit(t), t.features("sum", "answer")) for p, t in traces.items()
        }
        with pytest.MonkeyPatch.context() as patch:
            for where, name, changed in self.patches:
                patch.setattr(where, name, changed)
            rows = self._rows(folder, traces, fits)
        provenance = {
            "kind": "detect",
            "study": "s",
            "fingerprint": "f",
            "definition": {"precisions": list(PRECISIONS)},
            "nodes": {},
        }
        write_tables(folder, TABLES, rows, provenance)
        neurons = {"provenance": {"samples": samples_digest(self.samples)}}
        (folder / "neurons.json").write_text(json.dumps(neurons), encoding="utf-8")
        return folder

    def _rows(
        self, folder: Path, traces: dict[str, Traces], fits: dict[str, CrossFit]
    ) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in TABLES}
        rows["design"].append(design(self.samples, "answer", 0))
        for precision in PRECISIONS:
            comparison = Comparison(
                samples=self.samples,
                probes=fits["fp16"],
                reference=traces["fp16"],
                variant=traces[precision],
                reidentified=fits[precision],
                uncertainty=self.losses[precision],
                section=CompareSection(draws=3),
                seed=0,
            )
            for name, of_precision in comparison.tables().items():
                rows[name] += of_precision
            stability = StabilitySummary(50, 5.0, 4, 0.1)
            rows["selection"].append(selection(precision, fits[precision], stability))
            maps = folder / f"map-{precision}"
            maps.mkdir()
            mapping.build(
                maps, self.weights["source"], self.weights[precision], Task(None, "", 1, "")
            )
            probe = [(n.layer, n.index) for n in fits["fp16"].neurons.neurons]
            rows["mapping"].append(alignment(maps, precision, probe))
        return rows

    def _traces(self, folder: Path, precision: str, contributions: np.ndarray) -> Traces:
        folder.mkdir(parents=True)
        shares = contributions / contributions.sum(axis=2, keepdims=True)
        for measure, values in (("sum", shares), ("contribution", contributions)):
            np.save(folder / f"{measure}.answer.npy", values.astype(np.float32))
        info = TraceInfo(
            model=MODEL,
            precision=precision,
            compute="float32",
            n=len(self.samples),
            exchanges=exchanges_digest([sample.exchange for sample in self.samples]),
            measures=("sum", "contribution"),
            spans=("answer",),
            dtype="float32",
            weight_bytes=int(self.bits[precision] * 2**20),
            audit=(AuditRow("Linear", 6, "x", self.bits[precision], "float32", 9000),),
        )
        return Traces(folder, info)

    def _fit(self, traces: Traces) -> CrossFit:
        features, rows = traces.features("sum", "answer"), Rows(self.samples)
        key = features.values.tobytes() + rows.y.tobytes()
        if key not in self.fitted:
            settings = {"repeats": 1, "max_fraction": 0.25}
            self.fitted[key], _ = cross_fit(features, rows.y, rows.units, rows.folds, **settings)
        return self.fitted[key]


def healthy() -> Run:
    """A run in which six neurons predict hallucination, less so at NF4."""
    rng = np.random.default_rng(3)
    letters, n = np.array(list("abcdefghijklmnopqrstuvwxyz")), ANSWERS * PER_ANSWER
    names = ["".join(rng.choice(letters, 5)) for _ in range(n)]
    kinds = rng.choice(["town", "river", "hill"], n)
    samples = [
        Sample(
            id=f"q{i}",
            relation=f"r{i // PER_ANSWER % 4}",
            question=f"Where is the {kind} of {name}?",
            text=f"{names[i // PER_ANSWER][::-1]} {kinds[i - 1]}",
            answer=f"answer{i // PER_ANSWER}",
            hallucinated=bool(i % 2),
            unit=f"u{i // PER_ANSWER:02d}",
            fold=i // PER_ANSWER % FOLDS,
            prompt_ids=(1, i),
            response_ids=(2, 3 + i // PER_ANSWER),
        )
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    y = np.array([sample.hallucinated for sample in samples])
    size = rng.lognormal(0, 0.8, (LAYERS, D_FF))
    logs = 0.5 * rng.standard_normal((len(samples), LAYERS, D_FF))
    for layer, neurons in PLANTED.items():
        logs[:, layer, neurons] += 0.45 * y[:, None]
    shape = logs.shape
    drift = {"fp16": 0.0, "nf4": 0.25, "fp4": 0.5}
    h = {p: size * np.exp(logs + by * rng.standard_normal(shape)) for p, by in drift.items()}
    norms = rng.lognormal(0, 0.5, (LAYERS, D_FF))
    generator = torch.Generator().manual_seed(0)

    def tensor(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator)

    source = [FFN(tensor(D_FF, D_MODEL), tensor(D_FF, D_MODEL), tensor(D_MODEL, D_FF))] * LAYERS
    rounded = {
        p: [
            FFN(*(part + error * tensor(*part.shape) for part in ffn[:3]), bits=BITS[p])
            for ffn in source
        ]
        for p, error in (("fp16", 1e-6), ("nf4", 0.1), ("fp4", 0.15))
    }
    texts = rng.gamma(9, 0.4, 60)
    losses = {
        p: Uncertainty(
            entropy=rng.random(len(samples)) + 0.3 * y,
            nll=texts + divergence,
            kl=divergence,
            tokens=np.full(60, 20.0),
            tokens_per_second=1.0,
        )
        for p, by in (("fp16", 0.0), ("nf4", 0.3), ("fp4", 0.6))
        if (divergence := by * rng.random(60)) is not None
    }
    weights, cached = rounded | {"source": source}, (compare_stage, "text_scores", text_scores())
    # Rounding of the weights, with errors as at NF4 in a model with 576 inputs.
    of_precision = {
        p: norms * (1 + by * (1 + 0.8 * rng.standard_normal(norms.shape)))
        for p, by in (("fp16", 0.0), ("nf4", 0.005), ("fp4", 0.008))
    }
    return Run(samples, h, of_precision, weights, losses, BITS, patches=(cached,))


def text_scores() -> Callable[[list[Sample], Rows], dict[str, alarms.Scores]]:
    """Return the function of this name with a cache, as most faults change no text."""
    known: dict[tuple[object, ...], dict[str, alarms.Scores]] = {}
    compute = compare_stage.text_scores

    def scores(samples: list[Sample], rows: Rows) -> dict[str, alarms.Scores]:
        key = tuple((s.question, s.text, s.hallucinated, s.fold) for s in samples)
        if key not in known:
            known[key] = compute(samples, rows)
        return known[key]

    return scores


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
    "units not linked": units_not_linked,
    "units linked by mistake": units_linked,
    "one relation lost": relation_lost,
    "neurons replaced": neurons_replaced,
}
TOLERANCES = tomllib.loads(EXPERIMENTS["detect"].tolerances())
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
