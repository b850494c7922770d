"""Experiment tokens: the FP16 probe's score of every token of the samples' answers."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.tokens.tables import TABLES, Reduction
from harness.stages import mapping, readings
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.materials import Materials
from harness.stages.readings import Readings
from harness.stages.samples import Sample, require_origin
from harness.stages.select import SAMPLES_FILE, TOKENS_FILE
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE
from harness.tables.schema import Row
from hq.errors import HQError
from hq.probe.cross_fit import CrossFit
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.storage.atomic import atomic_file

SCORES_FILE = "token_scores.jsonl"
TokenScores = list[Float[np.ndarray, " token"]]
"""One array per sample."""

_REDUCTIONS: Mapping[str, Callable[[Float[np.ndarray, " token"]], float]] = {
    "mean": lambda scores: float(scores.mean()),
    "max": lambda scores: float(scores.max()),
    "min": lambda scores: float(scores.min()),
    "first": lambda scores: float(scores[0]),
    "last": lambda scores: float(scores[-1]),
}


class TokensExperiment(Experiment):
    """The frozen FP16 probes, token by token, with the entropy of each prediction."""

    name = "tokens"
    measures = "the probe's score of each token of an answer, and which tokens detect hallucination"
    tables = TABLES
    committed = (NEURONS_FILE,)

    def check(self, m: Materials) -> None:
        """Raises HQError if the probe is not one of answer tokens."""
        if m.study.identify.tokens != "answer":
            raise HQError(
                "Tokens are scored by a probe of answer tokens, but identify.tokens is "
                f"{m.study.identify.tokens!r}: set it to 'answer'."
            )

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare maps, the probes, and readings of the samples' tokens at each precision."""
        return [
            *(mapping.node(m, precision) for precision in m.study.precisions),
            Graph(m).identify(REFERENCE),
            *(_readings(m, precision) for precision in m.study.precisions),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the AUROC of each reduction of the token scores, by precision."""
        samples = Graph(m).read_samples(outputs)
        rows: list[Row] = []
        for precision in m.study.precisions:
            scores, _ = _scored(m, outputs, precision, samples)
            rows += _reduced(precision, scores, Rows(samples), m.study.seed)
        return {"tokens": rows}

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons, the samples, and the scores of their tokens."""
        graph = Graph(m)
        shutil.copyfile(graph.neurons_file(outputs), folder / NEURONS_FILE)
        shutil.copyfile(outputs[graph.samples] / SAMPLES_FILE, folder / SAMPLES_FILE)
        samples = graph.read_samples(outputs)
        with (
            atomic_file(folder / SCORES_FILE) as draft,
            open(draft, "w", encoding="utf-8", newline="\n") as lines,
        ):
            for precision in m.study.precisions:
                for line in _lines(m, outputs, precision, samples):
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return the AUROC of each reduction at each precision."""
        first = tables["tokens"][0]
        table = Table(
            title=f"AUROC of one number per answer, from the scores of its {first.tokens:.1f} "
            f"tokens.\n{first.n} samples in {first.units} units, 95% intervals.",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        table.add_column("precision", overflow="fold")
        for name in _REDUCTIONS:
            table.add_column(name, no_wrap=True)
        cells: dict[str, list[str]] = {}
        for row in tables["tokens"]:
            cells.setdefault(row.precision, []).append(estimate_cell(row.auroc))
        for precision, of_precision in cells.items():
            table.add_row(precision, *of_precision)
        return table


def _readings(m: Materials, precision: str) -> Node:
    graph = Graph(m)
    return readings.node(m, precision, graph.samples.output(TOKENS_FILE), graph.n)


def _scored(
    m: Materials, outputs: Outputs, precision: str, samples: Sequence[Sample]
) -> tuple[TokenScores, Readings]:
    """Return the score of each token by the probe that has not seen the sample's fold.

    Raises HQError if neurons do not correspond at this precision.
    """
    graph = Graph(m)
    probes = graph.read_probes(outputs, REFERENCE)
    require_origin(probes.neurons, samples, graph.read_traces(outputs, REFERENCE))
    if precision != REFERENCE:
        mapping.require(outputs[mapping.node(m, precision)], precision, probes.neurons)
    read = readings.read_readings(outputs[_readings(m, precision)])
    return out_of_fold(read, probes, samples), read


def out_of_fold(read: Readings, probes: CrossFit, samples: Sequence[Sample]) -> TokenScores:
    """Score each token of each sample by the probe of the sample's fold."""
    by_fold = [read.by_answer(read.decisions(fold.probe)) for fold in probes.folds]
    return [by_fold[sample.fold][i] for i, sample in enumerate(samples)]


def _reduced(precision: str, scores: TokenScores, rows: Rows, seed: int) -> Iterator[Row]:
    """Yield the AUROC of each reduction."""
    numbers = {name: np.array([of(s) for s in scores]) for name, of in _REDUCTIONS.items()}
    for name, values in numbers.items():
        yield Reduction(
            precision=precision,
            reduction=name,
            n=len(scores),
            units=len(np.unique(rows.units)),
            seed=seed,
            tokens=float(np.mean([len(s) for s in scores])),
            auroc=estimate_auroc(values, rows.y, rows.units, rows.folds),
            auroc_minus_mean=estimate_auroc_difference(
                values, numbers["mean"], rows.y, rows.units, rows.folds
            ),
        )


def _lines(
    m: Materials, outputs: Outputs, precision: str, samples: Sequence[Sample]
) -> Iterator[dict[str, object]]:
    """Yield each sample's tokens with the probe's score and the entropy of each."""
    scores, read = _scored(m, outputs, precision, samples)
    entropies = read.by_answer(read.entropy)
    for sample, of_sample, of_prediction in zip(samples, scores, entropies, strict=True):
        yield {
            "precision": precision,
            "id": sample.id,
            "tokens": [m.tokenizer.decode([token]) for token in sample.response_ids],
            "probe": np.round(of_sample, 4).tolist(),
            "entropy": np.round(of_prediction, 4).tolist(),
        }
