"""Every compared column of conditions, information and distributions regresses under a fault.

Runs are computed from synthetic CETT of a model with a few neurons that predict the labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from harness.check.acceptance import accept
from harness.check.limits import parse_limits
from harness.check.regress import compare
from harness.experiments import EXPERIMENTS
from harness.experiments.conditions.nodes import Scenario, aurocs
from harness.experiments.conditions.rows import ConditionsAnalysis, scenarios
from harness.experiments.conditions.section import ConditionsSection
from harness.experiments.distributions.density import density, placement
from harness.experiments.distributions.effects import EffectAnalysis
from harness.experiments.information.nodes import information
from harness.experiments.information.rows import InformationAnalysis
from harness.experiments.information.section import InformationSection
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from harness.tables.schema import Row
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
from hq.probe.cross_fit import CrossFit, FoldProbe
from hq.tracing.traces import TraceInfo, Traces, exchanges_digest
from tests.harness.test_injected_faults_elsewhere import write

LAYERS, D_FF, FOLDS, N = 6, 64, 4, 240
MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=LAYERS, d_ff=D_FF)
H_NEURONS = tuple((layer, index) for layer in (2, 3) for index in (5, 20, 40))
Tables = Mapping[str, Sequence[Row]]


def neuron_set(positions: Sequence[tuple[int, int]]) -> NeuronSet:
    """A set in which these neurons, as (layer, index), have positive weights."""
    return NeuronSet(
        model=MODEL,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0.0,
        neurons=tuple(
            Neuron(layer=layer, index=index, weight=1.0, mean=1.0, scale=1.0)
            for layer, index in sorted(positions)
        ),
    )


def cross_fit(positions: Sequence[tuple[int, int]]) -> CrossFit:
    """The set, and probes of folds that each lack one of its neurons."""
    folds = [neuron_set([*positions[:fold], *positions[fold + 1 :]]) for fold in range(FOLDS)]
    others = [[g for g in range(FOLDS) if g != fold] for fold in range(FOLDS)]
    return CrossFit(
        neurons=neuron_set(positions),
        folds=tuple(
            FoldProbe(probe=probe, calibration=dict.fromkeys(others[fold], probe))
            for fold, probe in enumerate(folds)
        ),
    )


@dataclass(frozen=True)
class Run:
    """What the tables are computed from."""

    samples: Sequence[Sample]
    cett: np.ndarray  # [n, p] in the study's scenario
    other: np.ndarray  # [n, p] in the second one
    identified: NeuronSet  # at the precision

    def conditions(self, folder: Path) -> Tables:
        rows = Rows(self.samples)
        first, second = Scenario(rows, self.cett), Scenario(rows, self.other)
        section = ConditionsSection(permutations=20)
        analysis = ConditionsAnalysis(
            probes=cross_fit(H_NEURONS),
            rows=rows,
            traces=self._traces(folder / "study", self.cett),
            other_rows=rows,
            other_traces=self._traces(folder / "other", self.other),
            aurocs=aurocs(first, second, section.thresholds, 20, 0, lambda _: None),
            section=section,
        )
        named = (("s", self.samples), ("o", self.samples))
        return {**analysis.tables(), "scenarios": scenarios(named)}

    def information(self, folder: Path) -> Tables:
        rows = Rows(self.samples)
        section = InformationSection(permutations=200, draws=20)
        traces = self._traces(folder / "study", self.cett)
        return InformationAnalysis(
            probes=cross_fit(H_NEURONS),
            rows=rows,
            reference=traces,
            traces=traces,
            information=information(self.cett, rows, 0.5, 200, 0, lambda _: None),
            section=section,
            seed=0,
        ).tables()

    def distributions(self, folder: Path) -> Tables:
        traces = self._traces(folder / "study", self.cett)
        analysis = EffectAnalysis(
            probes=cross_fit(H_NEURONS),
            rows=Rows(self.samples),
            reference=traces,
            traces=traces,
            draws=20,
            seed=0,
        )
        return {
            "density": density(self.identified, "fp16"),
            "placement": [placement(self.identified, "fp16", 0)],
            **analysis.tables(),
        }

    def _traces(self, where: Path, values: np.ndarray) -> Traces:
        where.mkdir(parents=True)
        for measure in ("sum", "contribution"):
            stored = values.astype(np.float32).reshape(-1, LAYERS, D_FF)
            np.save(where / f"{measure}.answer.npy", stored)
        info = TraceInfo(
            model=MODEL,
            precision="fp16",
            compute="float32",
            n=len(values),
            exchanges=exchanges_digest([sample.exchange for sample in self.samples]),
            measures=("sum", "contribution"),
            spans=("answer",),
            dtype="float32",
            weight_bytes=1,
            audit=(),
        )
        return Traces(where, info)


def healthy() -> Run:
    """CETT of the H-Neurons rises for hallucinated answers, by less in the second scenario."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            id=f"q{i}",
            relation="r",
            question=f"q{i}",
            text="a",
            answer=f"a{i // 2}",
            hallucinated=bool(i % 2),
            unit=f"u{i // 2:03d}",
            fold=i // 2 % FOLDS,
            prompt_ids=(1, i),
            response_ids=(2,),
        )
        for i in range(N)
    ]
    y = np.arange(N) % 2
    size = rng.lognormal(0, 0.3, LAYERS * D_FF)
    flat = MODEL.space.flat(*zip(*H_NEURONS, strict=True))
    scenarios = []
    for effect in (0.5, 0.3):
        cett = size * rng.lognormal(0, 0.4, (N, LAYERS * D_FF))
        cett[:, flat] *= np.exp(effect * y)[:, None]
        scenarios.append(cett.astype(np.float32))
    return Run(samples, *scenarios, neuron_set(H_NEURONS))


def rounded(run: Run) -> Run:
    """Another processor rounds differently."""
    rng = np.random.default_rng(1)
    changed = (
        (values * (1 + 1e-6 * rng.standard_normal(values.shape))).astype(np.float32)
        for values in (run.cett, run.other)
    )
    return Run(run.samples, *changed, run.identified)


def next_neuron(run: Run) -> Run:
    """Each neuron has the traces of the neuron after it."""
    return replace(run, cett=np.roll(run.cett, -1, axis=1), other=np.roll(run.other, -1, axis=1))


def labels_swapped(run: Run) -> Run:
    """Right and hallucinated are exchanged."""
    swapped = [s.model_copy(update={"hallucinated": not s.hallucinated}) for s in run.samples]
    return replace(run, samples=swapped)


def samples_lost(run: Run) -> Run:
    """A tenth of the samples are missing."""
    return replace(run, samples=run.samples[:216], cett=run.cett[:216], other=run.other[:216])


def without_signal(run: Run) -> Run:
    """The traces are of other texts, so no neuron is related to the labels."""
    order = np.random.default_rng(2).permutation(N)
    return replace(run, cett=run.cett[order], other=run.other[order])


def every_neuron_leaks(run: Run) -> Run:
    """Hallucinated answers are longer, and the sum over tokens is not divided by their number."""
    y = np.arange(N) % 2
    longer = np.exp(0.2 * y)[:, None].astype(np.float32)
    return replace(run, cett=run.cett * longer, other=run.other * longer)


def logarithms(run: Run) -> Run:
    """Logarithms are traced: ranks are equal, but not the distribution."""
    return replace(run, cett=np.log1p(run.cett), other=np.log1p(run.other))


def identified_elsewhere(run: Run) -> Run:
    """Identification finds fewer neurons, in the last layer."""
    return replace(run, identified=neuron_set([(LAYERS - 1, 3), (LAYERS - 1, 9)]))


FAULTS = (
    next_neuron,
    labels_swapped,
    samples_lost,
    without_signal,
    every_neuron_leaks,
    logarithms,
    identified_elsewhere,
)
KINDS = ("conditions", "information", "distributions")
COLUMNS = [
    (kind, table, column)
    for kind in KINDS
    for table, columns in parse_limits(EXPERIMENTS[kind].tolerances()).tolerances.items()
    for column in columns
]


def computed(run: Run, kind: str, folder: Path) -> Path:
    """The folder of a run with this content."""
    tables: Callable[[Path], Tables] = getattr(run, kind)
    return write(folder / kind, kind, tables(folder / f"{kind}-traces"))


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("committed")
    for kind in KINDS:
        accept(computed(healthy(), kind, folder / "run"), folder / kind)
    return folder


@pytest.fixture(scope="module")
def regressed(committed, tmp_path_factory):
    """The columns that regress under each fault."""
    columns: dict[Callable, set] = {}
    for fault in FAULTS:
        folder = tmp_path_factory.mktemp(fault.__name__)
        broken = fault(healthy())
        differences = [
            (kind, d)
            for kind in KINDS
            for d in compare(computed(broken, kind, folder), committed / kind)
        ]
        columns[fault] = {(kind, d.table, d.column) for kind, d in differences if d.regressed}
    return columns


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_rerun_does_not_regress(kind, committed, tmp_path):
    differences = compare(computed(rounded(healthy()), kind, tmp_path), committed / kind)
    assert {(kind, d.table, d.column) for d in differences} == {c for c in COLUMNS if c[0] == kind}
    assert [d for d in differences if d.regressed] == []


@pytest.mark.parametrize("column", COLUMNS, ids=".".join)
def test_a_fault_turns_each_compared_column_red(column, regressed):
    assert any(column in columns for columns in regressed.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen(fault, regressed):
    assert regressed[fault]
