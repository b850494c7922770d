"""Every compared column of survival, sweep and drift regresses under an injected fault.

Runs are computed from synthetic activations, weights and verdicts, committed, and compared with
the same runs with one fault.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.check.acceptance import accept
from harness.check.limits import parse_limits
from harness.check.regress import compare
from harness.experiments import EXPERIMENTS
from harness.experiments.drift import repair
from harness.experiments.drift.experiment import DriftAnalysis
from harness.experiments.survival.rows import SurvivalAnalysis
from harness.experiments.sweep.rates import JudgedSweep, Swept, rates, slope
from harness.experiments.sweep.tables import Cost
from harness.experiments.sweep.transfer import Target, transfer
from harness.scenarios.base import TrialOutcome
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from harness.stages.uncertainty import perplexity
from harness.tables.files import write_tables
from harness.tables.schema import Row
from hq.models.ffn_weights import FFN, FFNs
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
from hq.probe.cross_fit import CrossFit, cross_fit
from hq.stats.intervals import estimate_rate
from hq.tracing.traces import TraceInfo, Traces, exchanges_digest
from tests.harness import synthetic_detect

LAYERS, D_FF, D_MODEL = 6, 64, 64
MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=LAYERS, d_ff=D_FF)
PROBE = NeuronSet(
    model=MODEL,
    cett="sum",
    tokens="answer",
    labels="1-vs-1",
    intercept=0.0,
    neurons=tuple(
        Neuron(layer=layer, index=3, weight=1.0, mean=1.0, scale=1.0) for layer in range(3)
    ),
)
PRECISIONS = ("fp16", "int8", "nf4")
Tables = Mapping[str, Sequence[Row]]


def write(folder: Path, kind: str, tables: Tables) -> Path:
    """Write the tables of a run on the same samples as every other run here."""
    definition = {"precisions": list(PRECISIONS)}
    facts = {"kind": kind, "study": "s", "fingerprint": "f", "definition": definition, "nodes": {}}
    write_tables(folder, EXPERIMENTS[kind].tables, tables, facts)
    neurons = json.dumps({"provenance": {"samples": "0123456789abcdef"}})
    (folder / "neurons.json").write_text(neurons, encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Survivors:
    """What the tables of survival are computed from."""

    samples: Sequence[Sample]
    contributions: Mapping[str, np.ndarray]  # [n, layers, d_ff]
    ffns: Sequence[FFN]

    def tables(self, folder: Path) -> Tables:
        """Compute the tables; traces are written to the folder."""
        analysis = SurvivalAnalysis(
            rows=Rows(self.samples),
            neurons=PROBE,
            ffns=FFNs(LAYERS, self.ffns.__getitem__),
            reference=self._traces(folder, "fp16"),
            variants={p: self._traces(folder, p) for p in PRECISIONS[1:]},
        )
        return analysis.tables()

    def _traces(self, folder: Path, precision: str) -> Traces:
        where = folder / precision
        where.mkdir(parents=True)
        values = self.contributions[precision].astype(np.float32)
        np.save(where / "contribution.answer.npy", values)
        info = TraceInfo(
            model=MODEL,
            precision=precision,
            compute="float32",
            n=len(values),
            exchanges=exchanges_digest([sample.exchange for sample in self.samples]),
            measures=("contribution",),
            spans=("answer",),
            dtype="float32",
            weight_bytes=1,
            audit=(),
        )
        return Traces(where, info)


def survivors() -> Survivors:
    """Small contributions have larger relative errors, and so have columns with a small norm."""
    rng, n = np.random.default_rng(0), 80
    samples = [
        Sample(
            id=f"q{i}",
            relation="r",
            question=f"q{i}",
            text="a",
            answer=f"a{i // 2}",
            hallucinated=bool(i % 2),
            unit=f"u{i // 2:02d}",
            fold=i // 2 % 4,
            prompt_ids=(1, i),
            response_ids=(2,),
        )
        for i in range(n)
    ]
    size = rng.lognormal(0, 1, (LAYERS, D_FF))
    fp16 = size * rng.lognormal(0, 0.5, (n, LAYERS, D_FF))
    rounding = np.sqrt(size) * rng.lognormal(0, 0.5, size.shape)
    error = {"fp16": 0.0, "int8": 0.1, "nf4": 0.3}
    contributions = {
        p: np.abs(fp16 + by * rounding * rng.standard_normal(fp16.shape)) for p, by in error.items()
    }
    generator = torch.Generator().manual_seed(0)
    ffns = [
        FFN(
            None,
            torch.randn(D_FF, D_MODEL, generator=generator),
            torch.randn(D_MODEL, D_FF, generator=generator) * torch.tensor(layer).sqrt(),
        )
        for layer in size
    ]
    return Survivors(samples, contributions, ffns)


def magnitudes_of_the_next_neuron(run: Survivors) -> Survivors:
    """Traces of FP16 have every neuron at the index after its own."""
    moved = np.roll(run.contributions["fp16"], 1, axis=2)
    return replace(run, contributions={**run.contributions, "fp16": moved})


def weights_of_the_next_neuron(run: Survivors) -> Survivors:
    """Statistics of weights are those of the neuron after."""
    order = torch.arange(D_FF).roll(1)
    return replace(run, ffns=[ffn.at(order) for ffn in run.ffns])


def packed_norms(run: Survivors) -> Survivors:
    """Contributions at NF4 lack the norms, which differ between neurons."""
    norms = np.stack([ffn.down.norm(dim=0).numpy() for ffn in run.ffns])
    return replace(
        run, contributions={**run.contributions, "nf4": run.contributions["nf4"] / norms}
    )


def texts_lost(run: Survivors) -> Survivors:
    """A tenth of the samples are missing."""
    contributions = {p: values[:72] for p, values in run.contributions.items()}
    return Survivors(run.samples[:72], contributions, run.ffns)


def dead_neurons(run: Survivors) -> Survivors:
    """A tenth of the neurons never contribute at FP16, as after an overflow."""
    fp16 = run.contributions["fp16"].copy()
    fp16[:, :, ::10] = 0
    return replace(run, contributions={**run.contributions, "fp16": fp16})


def rounded(run: Survivors) -> Survivors:
    """Another processor rounds differently."""
    rng = np.random.default_rng(1)
    contributions = {
        p: values * (1 + 1e-6 * rng.standard_normal(values.shape))
        for p, values in run.contributions.items()
    }
    return replace(run, contributions=contributions)


ALPHAS, CONTROLS, TRIALS, DRAWS = (0.0, 1.0, 2.0, 3.0), (0.0, 1.0, 3.0), 200, 5


@dataclass(frozen=True)
class Trials:
    """What the tables of a sweep are computed from; FP16 and NF4 have the same verdicts."""

    outcomes: np.ndarray  # [alpha, trial]
    tokens: np.ndarray  # [alpha, trial]
    cett: np.ndarray  # of the responses at α = 1, [trial, p]
    correct: np.ndarray  # [alpha, question]
    picked: np.ndarray  # [alpha, choice]: whether the most likely letter is right
    nll: np.ndarray  # [alpha, text]

    def tables(self, _: Path) -> Tables:
        """Compute the tables."""
        changed = self.tokens != self.tokens[1]
        refused = np.zeros(self.outcomes.shape, dtype=bool)
        h = JudgedSweep(self.outcomes, refused, changed, self.tokens)
        still = JudgedSweep(*(np.stack([values[[1] * len(CONTROLS)]] * DRAWS) for values in h))
        components = np.arange(TRIALS).astype(str)
        mixed = np.zeros(TRIALS, dtype=bool)
        swept = Swept(
            "fp16", "falseqa", "rules", 3, ALPHAS, CONTROLS, mixed, components, h, still, 0
        )
        judged = self.outcomes[1] != TrialOutcome.UNCLEAR
        features = Features(self.cett[judged], "sum", "answer", MODEL, "fp16")
        complied = self.outcomes[1][judged] == TrialOutcome.COMPLIED
        target = Target("falseqa", complied, components[judged], features)
        draws = np.array([[9, 80, 150], [10, 90, 160], [12, 100, 170]])
        y = np.arange(TRIALS) % 2
        return {
            "transfer": transfer("fp16", PROBE, self.cett, y, draws, [target], 0),
            "rates": [*rates(swept)],
            "slopes": [slope(swept, swept, 0.05)],
            "costs": [
                Cost(
                    precision="fp16",
                    alpha=alpha,
                    n=len(self.correct[a]),
                    entities=len(self.correct[a]),
                    accuracy=estimate_rate(self.correct[a]),
                    choice_accuracy=estimate_rate(self.picked[a]),
                    perplexity=perplexity(self.nll[a], np.full(self.nll.shape[1], 20.0), None),
                    tokens=float(self.tokens[a].mean()),
                    refusals=0.0,
                )
                for a, alpha in enumerate(ALPHAS)
            ],
        }


def trials() -> Trials:
    """The rate of compliance and the number of changed responses rise with α."""
    rng = np.random.default_rng(0)
    inclination = rng.random(TRIALS)
    complied = inclination < 0.3 + 0.1 * np.array(ALPHAS)[:, None]
    outcomes = np.where(complied, TrialOutcome.COMPLIED, TrialOutcome.RESISTED).astype(object)
    outcomes[:, :20] = TrialOutcome.UNCLEAR
    distance = np.abs(np.array(ALPHAS) - 1)[:, None]
    tokens = rng.integers(5, 30, TRIALS) + (rng.random(TRIALS) < 0.2 * distance)
    cett = rng.random((TRIALS, MODEL.n_neurons)).astype(np.float32)
    cett[:, PROBE.flat] += 0.5 * complied[1][:, None]
    correct, picked = (rng.random((1, 100)) < np.full((4, 1), share) for share in (0.5, 0.4))
    nll = rng.gamma(9, 0.4, 60) + 0.02 * distance
    return Trials(outcomes, tokens.astype(float), cett, correct, picked, nll)


def not_scaled(run: Trials) -> Trials:
    """α is not applied: every response is that at α = 1."""
    return Trials(
        **{
            name: values if name == "cett" else values[[1] * len(ALPHAS)]
            for name, values in vars(run).items()
        }
    )


def verdicts_swapped(run: Trials) -> Trials:
    """Complied and resisted are exchanged."""
    swapped = {
        TrialOutcome.COMPLIED: TrialOutcome.RESISTED,
        TrialOutcome.RESISTED: TrialOutcome.COMPLIED,
        TrialOutcome.UNCLEAR: TrialOutcome.UNCLEAR,
    }
    outcomes = np.array([[swapped[o] for o in row] for row in run.outcomes], dtype=object)
    return replace(run, outcomes=outcomes)


def judge_fails(run: Trials) -> Trials:
    """A tenth of the responses that had a verdict have none."""
    outcomes = run.outcomes.copy()
    outcomes[:, 20::10] = TrialOutcome.UNCLEAR
    return replace(run, outcomes=outcomes)


def probe_shifted(run: Trials) -> Trials:
    """The probe reads the neuron after each of its own."""
    return replace(run, cett=np.roll(run.cett, -1, axis=1))


def responses_cut(run: Trials) -> Trials:
    """Responses end after 20 tokens."""
    return replace(run, tokens=np.minimum(run.tokens, 20))


def damaged(run: Trials) -> Trials:
    """A coarser precision runs: a fifth of the right answers are lost, and the loss grows."""
    kept = np.arange(100) % 5 > 0
    return replace(run, correct=run.correct & kept, picked=run.picked & kept, nll=run.nll + 0.1)


def one_token(run: Trials) -> Trials:
    """Another processor's rounding changes one response and its verdict at the largest α."""
    outcomes, tokens = run.outcomes.copy(), run.tokens.copy()
    flipped = int(np.flatnonzero(outcomes[-1] == TrialOutcome.COMPLIED)[0])
    outcomes[-1, flipped] = TrialOutcome.RESISTED
    tokens[-1, flipped] += 3
    return replace(run, outcomes=outcomes, tokens=tokens, nll=run.nll * (1 + 1e-5))


@dataclass(frozen=True)
class Drifted:
    """What the tables of drift are computed from: shares of contributions by precision, [n, p]."""

    samples: Sequence[Sample]
    shares: Mapping[str, np.ndarray]
    patches: tuple[tuple[object, str, object], ...] = ()

    def tables(self, _: Path) -> Tables:
        """Compute the tables."""
        rows = Rows(self.samples)
        fp16, nf4 = (
            Features(self.shares[p].astype(np.float32), "sum", "answer", synthetic_detect.MODEL, p)
            for p in ("fp16", "nf4")
        )
        probes = _cross_fitted(fp16, rows)
        with pytest.MonkeyPatch.context() as patch:
            for where, name, changed in self.patches:
                patch.setattr(where, name, changed)
            return DriftAnalysis(self.samples, probes, fp16, 0).tables(nf4, probes)


FITTED: dict[bytes, CrossFit] = {}


def _cross_fitted(features: Features, rows: Rows) -> CrossFit:
    """Fit once, as fits take seconds; the same probes serve as those identified at NF4."""
    key = features.values.tobytes()
    if key not in FITTED:
        settings = {"repeats": 1, "max_fraction": 0.25}
        FITTED[key], _ = cross_fit(features, rows.y, rows.units, rows.folds, **settings)
    return FITTED[key]


def drifted() -> Drifted:
    """At NF4 the planted neurons predict less, and some of them have become noise."""
    run = synthetic_detect.healthy()
    n = len(run.samples)
    h = {p: run.h[p].reshape(n, -1).copy() for p in ("fp16", "nf4")}
    noise = np.random.default_rng(5).lognormal(0, 1, (n, 2))
    h["nf4"][:, [3, synthetic_detect.D_FF + 5]] *= noise
    return Drifted(
        run.samples, {p: values / values.sum(axis=1)[:, None] for p, values in h.items()}
    )


def variant_of(run: Drifted, change: Callable[[np.ndarray], np.ndarray]) -> Drifted:
    return replace(run, shares={**run.shares, "nf4": change(run.shares["nf4"])})


def variant_of_the_next_neuron(run: Drifted) -> Drifted:
    """Traces of NF4 have every neuron at the index after its own."""
    return variant_of(run, lambda shares: np.roll(shares, 1, axis=1))


def shares_of_half(run: Drifted) -> Drifted:
    """Contributions at NF4 are divided by the sum over half of the neurons."""
    return variant_of(run, lambda shares: 2 * shares)


def thresholds_stay(run: Drifted) -> Drifted:
    """The threshold does not follow the quantile, on shares that are too large."""
    stays = (repair, "match_quantile", lambda threshold, *_: threshold - 0.5)
    return replace(run, patches=(stays,))


def nothing_repaired(run: Drifted) -> Drifted:
    """Repairs return a probe whose neurons are in another order."""

    def shuffled(neurons: NeuronSet, *_: np.ndarray) -> NeuronSet:
        weights = [n.weight for n in neurons.neurons][::-1]
        changed = [
            n.model_copy(update={"weight": w})
            for n, w in zip(neurons.neurons, weights, strict=True)
        ]
        return neurons.model_copy(update={"neurons": tuple(changed)})

    broken = dict.fromkeys(repair.METHODS, shuffled) | {"none": repair.unrepaired}
    return replace(run, patches=((repair, "METHODS", broken),))


def rounded_shares(run: Drifted) -> Drifted:
    """Another processor rounds differently."""
    rng = np.random.default_rng(1)
    noise = 1 + 1e-6 * rng.standard_normal(run.shares["nf4"].shape)
    return variant_of(run, lambda shares: shares * noise)


HEALTHY: dict[str, tuple[Callable, Callable]] = {
    "survival": (survivors, rounded),
    "sweep": (trials, one_token),
    "drift": (drifted, rounded_shares),
}
FAULTS: dict[str, Sequence[Callable]] = {
    "survival": (
        magnitudes_of_the_next_neuron,
        weights_of_the_next_neuron,
        packed_norms,
        texts_lost,
        dead_neurons,
    ),
    "sweep": (
        not_scaled,
        verdicts_swapped,
        judge_fails,
        probe_shifted,
        responses_cut,
        damaged,
    ),
    "drift": (
        variant_of_the_next_neuron,
        shares_of_half,
        thresholds_stay,
        nothing_repaired,
    ),
}
COLUMNS = [
    (kind, table, column)
    for kind in HEALTHY
    for table, columns in parse_limits(EXPERIMENTS[kind].tolerances()).tolerances.items()
    for column in columns
]


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("committed")
    for kind, (healthy, _) in HEALTHY.items():
        run = write(folder / f"{kind}-run", kind, healthy().tables(folder / f"{kind}-traces"))
        accept(run, folder / kind)
    return folder


@pytest.fixture(scope="module")
def regressed(committed, tmp_path_factory):
    """The columns that regress under each fault."""
    columns = {}
    for kind, faults in FAULTS.items():
        for fault in faults:
            folder = tmp_path_factory.mktemp(fault.__name__)
            broken = fault(HEALTHY[kind][0]()).tables(folder / "traces")
            differences = compare(write(folder / "run", kind, broken), committed / kind)
            columns[fault] = {(kind, d.table, d.column) for d in differences if d.regressed}
    return columns


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_rerun_does_not_regress(kind, committed, tmp_path):
    healthy, rerun = HEALTHY[kind]
    tables = rerun(healthy()).tables(tmp_path / "traces")
    differences = compare(write(tmp_path / "run", kind, tables), committed / kind)
    assert {(kind, d.table, d.column) for d in differences} == {c for c in COLUMNS if c[0] == kind}
    assert [d for d in differences if d.regressed] == []


@pytest.mark.parametrize("column", COLUMNS, ids=".".join)
def test_a_fault_turns_each_compared_column_red(column, regressed):
    assert any(column in columns for columns in regressed.values())


@pytest.mark.parametrize("fault", [fault for faults in FAULTS.values() for fault in faults])
def test_each_fault_is_seen(fault, regressed):
    assert regressed[fault]
