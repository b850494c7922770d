"""Bench `planted`: what identification finds of neurons that are known to cause hallucination.

Models of `harness.bench.planted_model` answer questions; labels are whether the answer that a model
prefers is right. The answers are balanced within relation and given answer, traced, and
cross-fitted as a study does it. `python -m harness.bench.planted docs` writes the results to
docs/planted.csv, and the tables of docs/planted.md.
"""

import sys
import tempfile
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Int

from harness.bench.base import BenchRow
from harness.bench.planted_model import (
    CUES,
    KINDS,
    Kind,
    Planted,
    Question,
    expected_auroc,
    greedy,
    planted_model,
    share_in,
    silenced,
)
from harness.stages.pairing import Candidate, pairs
from harness.stages.units import assign_folds
from harness.store.progress import silence_transformers
from hq.backends.base import Backend
from hq.backends.opening import open_backend
from hq.errors import HQError
from hq.neurons.cett import Measure
from hq.neurons.features import Features
from hq.probe.controls import matched_neurons
from hq.probe.cross_fit import CrossFit, cross_fit
from hq.probe.identify import identify
from hq.probe.overlap import jaccard
from hq.stats.auroc import auroc, estimate_auroc
from hq.storage.atomic import write_whole

DATA_FILE, TABLE_FILE = "planted.csv", "planted.md"
BEGIN, END = "<!-- planted: begin -->", "<!-- planted: end -->"
NOISES, SIZES = (0.25, 1.0, 2.0), (200, 400, 800)
NOISE, SIZE = 1.0, 800  # where the other one varies
PRECISIONS = ("fp16", "int8", "nf4")
_SUBJECTS = 4000
_HELD_OUT = 400  # questions that are asked with silenced neurons
_FOLDS = 5
_RUNS = 2  # models per kind and noise of the documentation
CAP = 0.1  # largest share of neurons with a weight
_DRAWS = 3  # of matched neurons


class Samples(NamedTuple):
    """Balanced questions with the answers of a model, in folds of whole groups."""

    questions: list[Question]
    y: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    folds: Int[np.ndarray, " n"]


def balanced(
    questions: Sequence[Question],
    n: int,
    seed: int,
    within: Callable[[Question], Hashable] = lambda question: (question.relation, question.given),
    group: Callable[[Question], int] = lambda question: question.given,
) -> Samples:
    """Return `n` questions, half of them answered wrongly: the first pairs that agree in `within`.

    Each subject is asked about once, so the given answer is the unit by default. Raises HQError if
    there are fewer pairs.
    """
    candidates = [Candidate(str(i), within(q), q.hallucinated) for i, q in enumerate(questions)]
    kept = [questions[int(id)] for pair in pairs(candidates, n // 2) for id in pair]
    if len(kept) < n:
        raise HQError(f"{len(questions)} questions have {len(kept)} balanced answers, not {n}.")
    y = np.array([q.hallucinated for q in kept], dtype=np.int64)
    groups = np.array([group(q) for q in kept])
    names, relations = groups.astype(str).tolist(), [str(q.relation) for q in kept]
    folds = assign_folds(names, y.astype(bool).tolist(), relations, _FOLDS, seed)
    return Samples(kept, y, groups, np.array(folds))


class Fitted(NamedTuple):
    """What is identified at FP16 on a sample: probes, H-Neurons, and neurons that match them."""

    samples: Samples
    probes: CrossFit
    matched: Int[np.ndarray, "draws k"]


class Measured(NamedTuple):
    """Measures of one model, or their means over several models, where they are defined.

    `selected` to `jaccard` are of the neurons that are identified at the precision itself. `auroc`
    and what `ended` are of the probes and neurons of FP16, as they do at the precision.
    """

    kind: str
    noise: float
    n: int
    precision: str
    runs: int
    selected: float  # neurons with a positive weight
    recall: float  # share of causal neurons that are selected
    causal: float  # share of selected neurons that are causal
    signal: float  # share of selected neurons that read a cue
    jaccard: float  # with the neurons that are identified at FP16
    auroc: float  # out of fold, within folds
    low: float  # ends of its 95% interval
    high: float
    believed: float  # whether the interval is above 0.5; a share of the models
    neuron: float  # AUROC of one neuron that reads a cue with an effect, mean over neurons
    together: float  # AUROC of the sum of their CETT
    ended: float  # share of new wrong answers that are right without the selected neurons
    ended_matched: float  # without as many neurons of similar magnitude
    ended_causal: float  # without all causal neurons


_VALUES = Measured._fields[5:]


def bench_planted(runs: int = 1, sizes: Sequence[int] = (200, SIZE)) -> list[BenchRow]:
    """Identify planted neurons, and silence them. Takes about 4 minutes.

    Args:
        runs: Models per kind and noise; four times as many with nothing planted.
        sizes: Numbers of labelled responses at the noise 1; 800 is one of them.
    """
    return bench_rows(means([row for job in jobs(runs, sizes) for row in measure(*job)]))


def jobs(runs: int, sizes: Sequence[int]) -> list[tuple[Kind, float, int, tuple[int, ...]]]:
    """Return the arguments of every call of `measure`."""
    return [
        (kind, noise, seed, tuple(sizes) if noise == NOISE else (SIZE,))
        for kind in KINDS
        for noise in ((NOISE,) if kind == "nothing" else NOISES)
        for seed in range(4 * runs if kind == "nothing" else runs)
    ]


def measure(
    kind: Kind,
    noise: float,
    seed: int,
    sizes: Sequence[int],
    precisions: Sequence[str] = PRECISIONS,
) -> list[Measured]:
    """Return the measures of one model at each precision and size.

    Labels, folds and traced tokens are those at the first precision, FP16. The last subjects are in
    no sample: they are asked with neurons silenced.
    """
    silence_transformers()
    planted = planted_model(kind, _SUBJECTS, noise, seed)
    rows: list[Measured] = []
    fits: dict[int, Fitted] = {}
    with tempfile.TemporaryDirectory() as name:
        planted.save(Path(name))
        for precision in precisions:
            backend = open_backend(Path(name), precision, "cpu", planted.identity)
            with closing(backend):
                if not fits:
                    questions = planted.ask(backend)[:-_HELD_OUT]
                    fits = {n: _fitted(backend, questions, n, seed) for n in sizes}
                rows += [_measured(backend, planted, of_size, seed) for of_size in fits.values()]
    return rows


def traced(backend: Backend, questions: Sequence[Question], measure: Measure = "sum") -> Features:
    """Return a measure of every neuron at the given answers."""
    values = np.empty((len(questions), backend.identity.n_neurons), dtype=np.float32)
    for batch in backend.trace([q.exchange for q in questions], (measure,), ("answer",)):
        values[batch.rows] = batch.values[:, 0, 0]
    return Features(values, measure, "answer", backend.identity, backend.precision)


def _fitted(backend: Backend, questions: Sequence[Question], n: int, seed: int) -> Fitted:
    samples = balanced(questions, n, seed)
    features = traced(backend, samples.questions)
    probes, _ = cross_fit(
        features, samples.y, samples.groups, samples.folds, max_fraction=CAP, seed=seed
    )
    magnitudes = traced(backend, samples.questions, "contribution").values.mean(axis=0)
    selected, space = probes.neurons.flat_positive, backend.identity.space
    return Fitted(samples, probes, matched_neurons(selected, magnitudes, space, _DRAWS, seed))


def _measured(backend: Backend, planted: Planted, fitted: Fitted, seed: int) -> Measured:
    samples, probes, matched = fitted
    features = traced(backend, samples.questions)
    area = estimate_auroc(
        probes.scores(features, samples.folds), samples.y, samples.groups, samples.folds
    )
    at_fp16 = probes.neurons.flat_positive
    selected = at_fp16
    if backend.precision != probes.neurons.provenance["precision"]:
        selected = identify(
            features, samples.y, groups=samples.groups, max_fraction=CAP, folds=_FOLDS, seed=seed
        ).flat_positive
    readers = planted.signal[:CUES]
    ended = silencing(backend, planted)
    return Measured(
        kind=planted.kind,
        noise=planted.noise,
        n=len(samples.y),
        precision=backend.precision,
        runs=1,
        selected=len(selected),
        recall=share_in(planted.causal, selected),
        causal=share_in(selected, planted.causal),
        signal=share_in(selected, planted.signal),
        jaccard=jaccard(selected, at_fp16),
        auroc=area.value,
        low=area.low,
        high=area.high,
        believed=float(area.low > 0.5),
        neuron=_mean([auroc(features.values[:, flat], samples.y) for flat in readers]),
        together=auroc(features.values[:, readers].sum(axis=1), samples.y)
        if len(readers)
        else np.nan,
        ended=ended(at_fp16),
        ended_matched=_mean([ended(draw) for draw in matched]),
        ended_causal=ended(planted.causal) if len(planted.causal) else np.nan,
    )


def silencing(backend: Backend, planted: Planted) -> Callable[[Int[np.ndarray, " k"]], float]:
    """Return a function: the share of wrong held-out answers that are right without some neurons.

    Wrong are the answers of the model at this precision.
    """
    prompts, right = planted.prompts[-_HELD_OUT:], np.array(planted.right[-_HELD_OUT:])
    wrong = np.array(greedy(backend, prompts)) != right

    def ended(neurons: Int[np.ndarray, " k"]) -> float:
        # The same batch again: int8 quantizes the activations of a batch together.
        with backend.scale(silenced(neurons, planted.identity)):
            return float((np.array(greedy(backend, prompts)) == right)[wrong].mean())

    return ended


def means(rows: Sequence[Measured]) -> list[Measured]:
    """Return the means over the runs of each kind, noise, size and precision; NaN if undefined."""
    grouped = _frame(rows).group_by(Measured._fields[:4], maintain_order=True)
    return _rows(grouped.agg(pl.col("runs").sum(), pl.col(*_VALUES).mean()))


def _frame(rows: Sequence[Measured]) -> pl.DataFrame:
    """Return rows as a table, with null for NaN."""
    return pl.DataFrame(rows, schema=list(Measured._fields), orient="row").with_columns(
        pl.col(*_VALUES).cast(pl.Float64).fill_nan(None)
    )


def _rows(frame: pl.DataFrame) -> list[Measured]:
    """Return a table as rows, with NaN for null."""
    return [Measured(*row) for row in frame.with_columns(pl.col(*_VALUES).fill_null(np.nan)).rows()]


def _mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def bench_rows(rows: Sequence[Measured]) -> list[BenchRow]:
    """Return the figures of `hq bench planted`, at n = 800."""
    by_key = {(row.kind, row.noise, row.n, row.precision): row for row in rows}

    def at(kind: Kind, noise: float = NOISE, precision: str = "fp16") -> Measured:
        return by_key[kind, noise, SIZE, precision]

    low, high = min(NOISES), max(NOISES)
    causal, nothing = at("causal", low), [row for row in rows if row.kind == "nothing"]
    found = [row.believed for row in nothing]
    return [
        _row("recall", causal.recall, ">= 0.9", "causal neurons that are selected, noise 0.25"),
        _row("precision", causal.causal, ">= 0.9", "selected neurons that are causal, noise 0.25"),
        _row("recall_noisy", at("causal", high).recall, None, "the same at the noise 2"),
        _row("precision_noisy", at("causal", high).causal, None, "the same at the noise 2"),
        _row(
            "single_neuron_auroc_minus_expected",
            causal.neuron - expected_auroc(low, 1),
            None,
            "of causal neurons, from the AUROC of their cues: the other neurons of a layer are in "
            "CETT's denominator",
        ),
        _row(
            "precision_bystanders",
            at("bystanders").causal,
            None,
            f"selected neurons that are causal, among {CUES} others that read the same latent "
            f"variable; {at('bystanders').signal:.2f} read a cue",
        ),
        _row(
            "precision_twins",
            at("twins").causal,
            None,
            f"the same, among {CUES} others that read the same cues; 0.5 is chance",
        ),
        *(
            _row(
                f"ended_{kind}",
                at(kind).ended,
                goal,
                f"wrong answers that are right without the selected neurons (AUROC "
                f"{at(kind).auroc:.3f}), noise 1; {at(kind).ended_matched:.3f} without matched "
                "ones",
            )
            for kind, goal in _ENDED_GOALS.items()
        ),
        *(
            _row(
                f"jaccard_{precision}",
                at("causal", precision=precision).jaccard,
                None,
                "of the neurons that are identified there and at fp16, noise 1",
            )
            for precision in PRECISIONS[1:]
        ),
        _row(
            "believed_with_nothing_planted",
            _mean(found),
            "<= 0.1",
            f"share of {sum(row.runs for row in nothing)} cross-fits at all sizes and precisions "
            f"with an interval above 0.5; {_mean([row.selected for row in nothing]):.1f} neurons "
            "are selected in the mean",
        ),
    ]


_ENDED_GOALS: dict[Kind, str | None] = {
    "causal": ">= 0.8",
    "bystanders": None,
    "twins": None,
    "correlates": "<= 0.02",
}


def _row(name: str, value: float, goal: str | None, note: str) -> BenchRow:
    return BenchRow(name=name, value=value, unit="", goal=goal, note=note)


def write_planted(folder: Path, rows: Sequence[Measured]) -> None:
    """Write the data, and the tables between the markers of the documentation."""
    write_whole(
        folder / DATA_FILE, _frame(rows).with_columns(pl.col(*_VALUES).round(4)).write_csv()
    )
    document = (folder / TABLE_FILE).read_text(encoding="utf-8")
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    write_whole(folder / TABLE_FILE, f"{before}{BEGIN}\n{tables(folder)}{END}{after}")


def tables(folder: Path) -> str:
    """Return the findings and the Markdown tables of the data in a folder."""
    types = {"noise": pl.Float64, **dict.fromkeys(_VALUES, pl.Float64)}
    rows = _rows(pl.read_csv(folder / DATA_FILE, schema_overrides=types))
    found = [
        [
            row.kind,
            "" if row.kind == "nothing" else f"{row.noise:g}",
            str(row.n),
            str(row.runs),
            f"{row.selected:.1f}",
            *(_share(value) for value in (row.recall, row.causal, row.signal)),
            f"{row.auroc:.3f} [{row.low:.3f}, {row.high:.3f}]",
            f"{row.believed:.2f}",
            _share(row.together, 3),
            _share(row.neuron, 3),
        ]
        for row in rows
        if row.precision == PRECISIONS[0]
    ]
    moved = [
        [
            row.kind,
            row.precision,
            f"{row.selected:.1f}",
            *(_share(value) for value in (row.recall, row.causal, row.jaccard)),
            f"{row.auroc:.3f}",
            *(_share(value) for value in (row.ended, row.ended_matched, row.ended_causal)),
        ]
        for row in rows
        if (row.noise, row.n) == (NOISE, SIZE)
    ]
    expected = (
        f"{expected_auroc(noise):.3f} and {expected_auroc(noise, 1):.3f} at noise {noise:g}"
        for noise in NOISES
    )
    lines = [
        f"Means over models. Expected AUROC of all {CUES} cues and of one: {'; '.join(expected)}.",
        "",
        *_markdown(_FOUND, found),
        "",
        f"At noise {NOISE:g} and n = {SIZE}, by precision; the AUROC is that of the FP16 probes:",
        "",
        *_markdown(_MOVED, moved),
        "",
    ]
    return "\n".join(lines)


_FOUND = (
    "planted | noise | n | models | selected | recall | causal | reads a cue | AUROC out of fold | "
    "believed | all cues | one cue"
)
_MOVED = (
    "planted | precision | selected | recall | causal | Jaccard with FP16 | AUROC | ended | "
    "ended, matched | ended, all causal"
)


def _markdown(header: str, rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "---|" * (header.count("|") + 1)
    return [f"| {header} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]


def _share(value: float, digits: int = 2) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _measure(job: tuple[Kind, float, int, tuple[int, ...]]) -> list[Measured]:
    torch.set_num_threads(1)
    return measure(*job)


if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        of_jobs = pool.map(_measure, jobs(_RUNS, SIZES))
        write_planted(Path(sys.argv[1]), means([row for rows in of_jobs for row in rows]))
