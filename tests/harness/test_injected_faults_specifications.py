"""Every compared column of specifications regresses under an injected fault."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from harness.check.acceptance import accept
from harness.check.limits import parse_limits
from harness.check.regress import compare
from harness.experiments import EXPERIMENTS
from harness.experiments.specifications.nodes import Agreement, Fit, Specification, estimated
from harness.experiments.specifications.partitions import LEFT_OUT, Partition, Placed, text_aurocs
from harness.experiments.specifications.rows import SpecificationAnalysis
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from harness.tables.files import write_tables
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
from hq.probe.rules import FoldSets

KIND = "specifications"
MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=2, d_ff=60)
PRECISIONS = ("fp16", "nf4")
N, FOLDS = 240, 4
OWN, HALF = Partition(), Partition(samples="half 1a")
SPECIFICATIONS = [
    Specification(Fit("sum", "answer", "1-vs-1", partition), rule)
    for partition in (OWN, HALF)
    for rule in ("one-se", "best")
]


def neuron_set(*indices: int) -> NeuronSet:
    neurons = tuple(Neuron(layer=0, index=i, weight=1.0, mean=1.0, scale=1.0) for i in indices)
    return NeuronSet(
        model=MODEL, cett="sum", tokens="answer", labels="1-vs-1", intercept=0.0, neurons=neurons
    )


@dataclass(frozen=True)
class Scored:
    """What the tables are computed from."""

    samples: list[Sample]
    scores: dict[str, np.ndarray]  # [specification, n] by precision
    correlations: np.ndarray  # of the scores of two halves, by split
    aurocs: np.ndarray

    def tables(self) -> dict:
        rows = Rows(self.samples)
        half = np.where(np.arange(len(rows.y)) // 16 % 2, rows.folds, LEFT_OUT)
        folds = {OWN: rows.folds, HALF: half}
        sets = {
            s: FoldSets(neurons=neuron_set(1, 2), folds=(neuron_set(1),) * FOLDS)
            for s in SPECIFICATIONS
        }
        scores = {
            p: {
                s: np.where(folds[s.fit.partition] == LEFT_OUT, np.nan, values)
                for s, values in zip(SPECIFICATIONS, of_precision, strict=True)
            }
            for p, of_precision in self.scores.items()
        }
        own = SPECIFICATIONS[0]
        estimates = {
            p: {
                s: estimated(
                    rows,
                    (scores[p][s], folds[s.fit.partition]),
                    (scores[p][own], rows.folds),
                    None if p == "fp16" else scores["fp16"][s],
                )
                for s in SPECIFICATIONS
            }
            for p in PRECISIONS
        }
        steady = [0.1 * (1 + i % 3) for i in range(len(self.correlations))]
        splits = dict.fromkeys(
            (
                *("neurons", "jaccard", "jaccard_chance", "consistency", "nearest"),
                *("nearest_chance", "correlation_within"),
            ),
            steady,
        )
        splits |= {"correlation": self.correlations.tolist(), "auroc": self.aurocs.tolist()}
        analysis = SpecificationAnalysis(
            rows=rows,
            sets=sets,
            partitions={
                p: Placed(fold, text_aurocs(self.samples, fold)) for p, fold in folds.items()
            },
            estimates=estimates,
            scores=scores,
            agreement=Agreement(splits, steady),
            failures={},
        )
        return analysis.tables()


def healthy() -> Scored:
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            id=f"q{i}",
            relation="r",
            question=f"ask {' '.join(rng.choice(list('abcdefgh'), 3))} {i}",
            text="reply " + " ".join(rng.choice(list("stuvwxyz"), 2)),
            answer=f"a{i // 2}",
            hallucinated=bool(i % 2),
            unit=f"u{i // 4:02d}",
            fold=i // 4 % FOLDS,
            prompt_ids=(1, i),
            response_ids=(2,),
        )
        for i in range(N)
    ]
    y = np.arange(N) % 2
    signal = y + rng.standard_normal(N)
    fp16 = signal + 0.3 * rng.standard_normal((len(SPECIFICATIONS), N))
    nf4 = fp16 + 0.8 * rng.standard_normal(fp16.shape)
    correlations = 0.7 + 0.05 * rng.standard_normal(30)
    return Scored(samples, {"fp16": fp16, "nf4": nf4}, correlations, correlations)


def rounded(run: Scored) -> Scored:
    """Another processor rounds differently."""
    rng = np.random.default_rng(1)
    scores = {p: v * (1 + 1e-6 * rng.standard_normal(v.shape)) for p, v in run.scores.items()}
    return replace(run, scores=scores, correlations=run.correlations + 1e-6)


def next_sample(run: Scored) -> Scored:
    """Scores are those of the sample after."""
    return replace(run, scores={p: np.roll(v, 1, axis=1) for p, v in run.scores.items()})


def fp16_runs(run: Scored) -> Scored:
    """FP16 runs in place of NF4."""
    return replace(run, scores=dict.fromkeys(PRECISIONS, run.scores["fp16"]))


def own_everywhere(run: Scored) -> Scored:
    """Every specification is computed with the study's own choices."""
    return replace(run, scores={p: np.tile(v[:1], (len(v), 1)) for p, v in run.scores.items()})


def samples_lost(run: Scored) -> Scored:
    """A tenth of the samples are missing."""
    kept = N * 9 // 10
    return replace(
        run, samples=run.samples[:kept], scores={p: v[:, :kept] for p, v in run.scores.items()}
    )


def texts_leak(run: Scored) -> Scored:
    """The question tells the label."""
    samples = [
        s.model_copy(update={"question": f"{s.question} {'odd' if s.hallucinated else 'even'}"})
        for s in run.samples
    ]
    return replace(run, samples=samples)


def halves_overlap(run: Scored) -> Scored:
    """Both halves are the same units."""
    return replace(run, correlations=np.full(30, 0.999))


def held_out_shifted(run: Scored) -> Scored:
    """Probes of halves are evaluated on the wrong labels."""
    return replace(run, aurocs=np.full(30, 0.5))


FAULTS = (
    next_sample,
    fp16_runs,
    own_everywhere,
    samples_lost,
    texts_leak,
    halves_overlap,
    held_out_shifted,
)
COLUMNS = [
    (table, column)
    for table, columns in parse_limits(EXPERIMENTS[KIND].tolerances()).tolerances.items()
    for column in columns
]


def write(folder: Path, run: Scored) -> Path:
    facts = {
        "kind": KIND,
        "study": "s",
        "fingerprint": "f",
        "definition": {"precisions": list(PRECISIONS)},
        "nodes": {},
    }
    write_tables(folder, EXPERIMENTS[KIND].tables, run.tables(), facts)
    neurons = json.dumps({"provenance": {"samples": "0123456789abcdef"}})
    (folder / "neurons.json").write_text(neurons, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("committed")
    accept(write(folder / "run", healthy()), folder / "committed")
    return folder / "committed"


@pytest.fixture(scope="module")
def regressed(committed, tmp_path_factory):
    """The columns that regress under each fault."""
    columns: dict[Callable, set] = {}
    for fault in FAULTS:
        run = write(tmp_path_factory.mktemp(fault.__name__), fault(healthy()))
        columns[fault] = {(d.table, d.column) for d in compare(run, committed) if d.regressed}
    return columns


def test_a_healthy_rerun_does_not_regress(committed, tmp_path):
    differences = compare(write(tmp_path / "run", rounded(healthy())), committed)
    assert {(d.table, d.column) for d in differences} == set(COLUMNS)
    assert [d for d in differences if d.regressed] == []


@pytest.mark.parametrize("column", COLUMNS, ids=".".join)
def test_a_fault_turns_each_compared_column_red(column, regressed):
    assert any(column in columns for columns in regressed.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen(fault, regressed):
    assert regressed[fault]
