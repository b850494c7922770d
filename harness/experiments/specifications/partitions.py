"""Partitions of the samples: the study's folds, other folds, and halves of the units.

Where samples are balanced within a relation, other folds have to keep the balance. Random folds do
not: a relation with too many right answers in one fold has too many hallucinated ones in the
others, and a probe learns the opposite of what holds for the held-out fold. On the study
smollm2-knowledge, the text-only control falls from an AUROC of 0.51 to 0.39 with folds that balance
labels and relations, and stays at 0.50 with those of `balanced_folds`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from harness.stages.identify import Rows
from harness.stages.samples import Sample, read_samples
from harness.stages.select import SAMPLES_FILE
from harness.stages.units import assign_folds, require_both_labels
from harness.store.environment import FIT, machine_class
from harness.store.node import Node, Stage, Work
from hq.errors import HQError
from hq.probe.text import TEXT_CONTROLS, text_only
from hq.stats.auroc import estimate_auroc
from hq.stats.intervals import Estimate
from hq.storage.atomic import write_whole

if TYPE_CHECKING:
    from harness.experiments.specifications.section import SpecificationsSection
    from harness.stages.materials import Materials

OWN, ALL = "study", "all"
LEFT_OUT = -1  # fold of a sample that is not in a half
_FILE = "partitions.json"
_SWEEPS = 10  # over all units; on the default study, hardly a unit moves later
_SIZE = 0.02  # largest relative deviation of the number of samples of a fold


class Partition(NamedTuple):
    """Names of folds ("study", "seed 1", …) and of the samples ("all", "half 1a", …)."""

    folds: str = OWN
    samples: str = ALL

    def __str__(self) -> str:
        return self.folds if self.samples == ALL else self.samples

    @property
    def seed(self) -> int:
        """What is added to the study's seed: 0 for its own folds."""
        return 0 if self.folds == OWN else int(self.folds.removeprefix("seed "))


class Placed(NamedTuple):
    """A partition: the fold of each sample, and text-only controls on these folds."""

    fold: Int[np.ndarray, " n"]  # LEFT_OUT for samples that are not in it
    texts: dict[str, Estimate]  # AUROC by name of the control

    @property
    def rows(self) -> Int[np.ndarray, " m"]:
        """The samples in it."""
        return np.flatnonzero(self.fold != LEFT_OUT)


def partitions(section: "SpecificationsSection") -> list[Partition]:
    """Return the study's own partition, other folds, and halves."""
    others = [Partition(folds=f"seed {i}") for i in range(1, section.seeds + 1)]
    pairs = range(1, section.halves + 1)
    halves = [Partition(samples=f"half {i}{side}") for i in pairs for side in "ab"]
    return [Partition(), *others, *halves]


def node(m: "Materials", section: "SpecificationsSection", samples: Node) -> Node:
    """Declare the partitions of the samples."""
    names = partitions(section)
    parameters = {
        "machine": machine_class(),
        "partitions": [list(name) for name in names],
        "seed": m.study.seed,
    }
    inputs = {"samples": samples.output(SAMPLES_FILE)}
    return Node(STAGE, parameters, inputs, units=len(names), unit="partitions")


def make(work: "Work[Materials]") -> None:
    """Write the fold of each sample in each partition, and its text-only controls."""
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    names = [Partition(*name) for name in work.parameters["partitions"]]
    written = []
    with work.task(len(names), "partitions") as task:
        for name in names:
            fold = place(name, samples, work.parameters["seed"])
            texts = {t: e.model_dump() for t, e in text_aurocs(samples, fold).items()}
            written.append({"name": list(name), "fold": fold.tolist(), "texts": texts})
            task.advance(1)
    write_whole(work.folder / _FILE, json.dumps(written) + "\n")


def read(folder: Path) -> dict[Partition, Placed]:
    """Read the partitions from the output of a finished node."""
    return {
        Partition(*one["name"]): Placed(
            np.array(one["fold"]),
            {name: Estimate.model_validate(values) for name, values in one["texts"].items()},
        )
        for one in json.loads((folder / _FILE).read_text(encoding="utf-8"))
    }


def place(name: Partition, samples: Sequence[Sample], seed: int) -> Int[np.ndarray, " n"]:
    """Return the fold of each sample; LEFT_OUT for samples that are not in the partition."""
    rows = Rows(samples)
    if name.samples != ALL:
        pair, side = int(name.samples[5:-1]), name.samples[-1]
        return _half(rows, seed, pair, side == "a")
    if name.folds == OWN:
        return rows.folds
    return balanced_folds(samples, int(rows.folds.max()) + 1, seed + name.seed)


def balanced_folds(samples: Sequence[Sample], k: int, seed: int) -> Int[np.ndarray, " n"]:
    """Return k folds of whole units, each with as many right as hallucinated samples per relation.

    Units start in the folds of `assign_folds`, stratified by relation and label. Then each unit in
    turn moves to the fold where the sum over relations of |hallucinated − right| becomes smallest,
    as long as the sizes of the folds differ by at most a few percent. The balance is nearly exact.

    Raises HQError if a fold lacks a label.
    """
    names, unit = np.unique([s.unit for s in samples], return_inverse=True)
    relation = np.unique([s.relation for s in samples], return_inverse=True)[1]
    labels = [s.hallucinated for s in samples]
    strata = [f"{s.relation} {s.hallucinated}" for s in samples]
    start = assign_folds([s.unit for s in samples], labels, strata, k, seed)
    excess: Float[np.ndarray, "unit relation"] = np.zeros((len(names), relation.max() + 1))
    np.add.at(excess, (unit, relation), np.where(labels, 1, -1))
    size = np.bincount(unit).astype(np.float64)
    fold_of = np.zeros(len(names), dtype=np.int64)
    fold_of[unit] = start
    totals = np.zeros((k, excess.shape[1]))
    np.add.at(totals, fold_of, excess)
    sizes = np.bincount(fold_of, size, k)
    allowed = max(_SIZE * len(samples) / k, float(size.max()))

    def cost(
        of_fold: Float[np.ndarray, "*fold relation"], count: Float[np.ndarray, "*fold"]
    ) -> Float[np.ndarray, "*fold"]:
        beyond = np.maximum(np.abs(count - len(samples) / k) - allowed, 0)
        total: Float[np.ndarray, "*fold"] = np.abs(of_fold).sum(axis=-1) + beyond
        return total

    rng = np.random.default_rng(seed)
    for _ in range(_SWEEPS):
        for u in rng.permutation(len(names)):
            own = fold_of[u]
            leaves = cost(totals[own] - excess[u], sizes[own] - size[u])
            gain = cost(totals + excess[u], sizes + size[u]) - cost(totals, sizes)
            gain += leaves - cost(totals[own], sizes[own])
            gain[own] = 0
            best = int(rng.choice(np.flatnonzero(gain == gain.min())))
            if best != own:  # ties move too, which leaves local minima
                for fold, sign in ((own, -1), (best, 1)):
                    totals[fold] += sign * excess[u]
                    sizes[fold] += sign * size[u]
                fold_of[u] = best
    require_both_labels(fold_of[unit].tolist(), labels, k)
    folds: Int[np.ndarray, " n"] = fold_of[unit]
    return folds


def _half(rows: Rows, seed: int, pair: int, first: bool) -> Int[np.ndarray, " n"]:
    """The study's folds of the units in a random half of each fold; LEFT_OUT for the others."""
    rng = np.random.default_rng((seed, pair))
    k = int(rows.folds.max()) + 1
    for _ in range(100):
        chosen: list[str] = []
        for fold in range(k):
            units = rng.permutation(np.unique(rows.units[rows.folds == fold]))
            chosen += units[: (len(units) + fold % 2) // 2].tolist()
        inside = np.isin(rows.units, chosen)
        if all(_has_both_labels(rows, half, k) for half in (inside, ~inside)):
            return np.where(inside == first, rows.folds, LEFT_OUT)
    raise HQError(
        "A random half of the units nearly always lacks a label in one of the folds: ask more "
        "questions, or use fewer folds."
    )


def _has_both_labels(rows: Rows, half: np.ndarray, k: int) -> bool:
    return all(
        len(np.unique(rows.y[half & (rows.folds == fold)])) == 2 for fold in range(k)
    ) and all(len(np.unique(rows.units[half & (rows.y == label)])) >= k for label in (0, 1))


def text_aurocs(samples: Sequence[Sample], fold: Int[np.ndarray, " n"]) -> dict[str, Estimate]:
    """Return the AUROC of each text-only control on these folds."""
    chosen = [sample for sample, f in zip(samples, fold, strict=True) if f != LEFT_OUT]
    rows, folds = Rows(chosen), fold[fold != LEFT_OUT]
    questions, answers = [s.question for s in chosen], [s.text for s in chosen]
    scores = {name: np.empty(len(chosen)) for name in TEXT_CONTROLS}
    for held_out in range(int(folds.max()) + 1):
        seen, test = np.flatnonzero(folds != held_out), folds == held_out
        for name, values in text_only(questions, answers, rows.y, seen).items():
            scores[name][test] = values[test]
    return {name: estimate_auroc(s, rows.y, rows.units, folds) for name, s in scores.items()}


STAGE = Stage("partitions", make, packages=FIT)
