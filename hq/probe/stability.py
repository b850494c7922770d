"""How often each neuron is selected on random halves of the data, and how far halves agree."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.stats import rankdata

from hq.errors import HQError
from hq.neurons.features import Features
from hq.probe.identify import design_of
from hq.probe.l1 import Columns
from hq.probe.matrix import Matrix
from hq.probe.overlap import consistency, expected_jaccard, jaccard
from hq.probe.regularisation import Design, fit_at
from hq.stats.auroc import auroc

STABLE = 0.6
"""Selection frequency from which the tables call a neuron stable."""
_BATCH = 10  # halves that are fitted together


@dataclass(frozen=True)
class Stability:
    """Selection frequencies over subsamples.

    Subsamples are complementary pairs of random halves of the groups (Shah & Samworth 2013,
    "Variable selection with error control"). The expected number of neurons that are selected with
    a frequency of π or more, although they are selected no more often than an average neuron, is at
    most q² / ((2π − 1)·p), with q the mean number of selected neurons of p (Meinshausen & Bühlmann
    2010, "Stability selection", theorem 1).
    """

    frequency: Float[np.ndarray, " p"]
    subsamples: int
    mean_selected: float  # q

    def stable(self, threshold: float) -> int:
        """Return the number of neurons with at least this selection frequency."""
        return int((self.frequency >= threshold - 1e-9).sum())

    def expected_false(self, threshold: float) -> float:
        """Return the bound on false selections at this frequency, between 0.5 and 1."""
        if not 0.5 < threshold <= 1:
            raise HQError(f"The selection frequency {threshold:g} is not above 0.5 and up to 1.")
        return self.mean_selected**2 / ((2 * threshold - 1) * len(self.frequency))


def stability(
    features: Features,
    y: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    C: float,
    *,
    pairs: int = 25,
    seed: int = 0,
    other: Features | None = None,
) -> Stability:
    """Fit on `pairs` random divisions of the groups in two halves, at the penalty of C per row.

    As a half has fewer rows, its C is larger in inverse proportion to them. Raises HQError as
    `identify` does, and if there are fewer than four groups.
    """
    if pairs < 1:
        raise HQError(f"Stability needs one pair of halves or more, not {pairs}.")
    design = design_of(features, y, groups, 2, other)
    codes = np.unique(design.groups)
    if len(codes) < 4:
        raise HQError(f"Stability needs four groups or more, and there are {len(codes)}.")
    rng = np.random.default_rng(seed)
    halves = [half for _ in range(pairs) for half in _halves(design, codes, rng)]
    counts = np.zeros(design.Z.shape[1], dtype=np.int64)
    for _, coef, _ in _fits(design, halves, C):
        counts += coef != 0
    return Stability(counts / len(halves), len(halves), float(counts.sum() / len(halves)))


@dataclass(frozen=True)
class SplitHalf:
    """Agreement of two probes that are fitted on complementary halves, one value per split.

    Correlated neurons can replace each other, so probes with different neurons may have the same
    scores. Scores are those of the responses of a fold that neither half contains.
    """

    neurons: Float[np.ndarray, " split"]  # mean of the two numbers
    jaccard: Float[np.ndarray, " split"]
    jaccard_chance: Float[np.ndarray, " split"]  # expected for random sets of these sizes
    consistency: Float[np.ndarray, " split"]
    # Mean over neurons of one set only of the largest |r| of its values with those of a neuron of
    # the other set; NaN if the sets are equal. And the same for as many random neurons.
    nearest: Float[np.ndarray, " split"]
    nearest_chance: Float[np.ndarray, " split"]
    correlation: Float[np.ndarray, " split"]  # Pearson's, of the two scores
    correlation_within: Float[np.ndarray, " split"]  # of their deviations from the mean of a label
    auroc: Float[np.ndarray, " split"]  # mean of the two


def split_half(
    features: Features,
    y: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
    C: float,
    *,
    splits: int = 30,
    seed: int = 0,
    other: Features | None = None,
    finished: Callable[[], object] | None = None,
) -> SplitHalf:
    """Fit on two random halves of the groups outside of a fold, at the penalty of C per row.

    The folds are held out in turn. `finished` is called after each split. Raises HQError as
    `identify` does, if there are fewer than two splits, and if a half selects no neuron.
    """
    if splits < 2:
        raise HQError(f"The agreement of halves needs two splits or more, not {splits}.")
    design = design_of(features, y, groups, 2, other)
    rng = np.random.default_rng(seed)
    n, k = len(y), int(folds.max()) + 1
    held_out = [np.flatnonzero(folds == split % k) for split in range(splits)]
    halves: list[Int[np.ndarray, " m"]] = []
    for test in held_out:
        outside = np.setdiff1d(design.groups, design.groups[test])
        halves += _halves(design, outside, rng)
    rows: list[tuple[float, ...]] = []
    fits = _fits(design, halves, C)
    for test in held_out:
        both = next(fits), next(fits)
        sets = [np.flatnonzero(coef) for _, coef, _ in both]
        if not all(len(chosen) for chosen in sets):
            raise HQError(f"At C = {C:g}, half of the groups selects no neuron: raise C.")
        scores = [_decisions(fit, test) for fit in both]
        label = y[test]
        deviations = [s - np.bincount(label, s)[label] / np.bincount(label)[label] for s in scores]
        sizes = len(sets[0]), len(sets[1])
        rows.append(
            (
                sum(sizes) / 2,
                jaccard(*sets),
                expected_jaccard(*sizes, design.Z.shape[1]),
                consistency(sets, design.Z.shape[1]),
                *_nearest(design.Z, n, sets, rng),
                float(np.corrcoef(scores)[0, 1]),
                float(np.corrcoef(deviations)[0, 1]),
                float(np.mean([auroc(s, label) for s in scores])),
            )
        )
        if finished is not None:
            finished()
    return SplitHalf(*np.array(rows).T)


def frequency_agreement(
    features: Features,
    y: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    C: float,
    *,
    splits: int = 10,
    pairs: int = 5,
    seed: int = 0,
    other: Features | None = None,
    finished: Callable[[], object] | None = None,
) -> Float[np.ndarray, " split"]:
    """Return Spearman's correlation of the selection frequencies in complementary halves.

    It is over all neurons, so it is 0 on average if the halves select different neurons at random.
    In each half, frequencies are over `pairs` pairs of complementary quarters, at the penalty of C
    per row. `finished` is called after each split. Raises HQError as `stability` does.
    """
    design = design_of(features, y, groups, 4, other)
    rng = np.random.default_rng(seed)
    values = np.empty(splits)
    for split in range(splits):
        quarters = [
            quarter
            for half in _halves(design, np.unique(design.groups), rng)
            for _ in range(pairs)
            for quarter in _halves(design, np.unique(design.groups[half]), rng)
        ]
        selected = np.array([coef != 0 for _, coef, _ in _fits(design, quarters, C)])
        counts = selected.reshape(2, 2 * pairs, -1).sum(axis=1)
        values[split] = np.corrcoef([rankdata(of_half) for of_half in counts])[0, 1]
        if finished is not None:
            finished()
    return values


def _fits(
    design: Design, parts: Sequence[Int[np.ndarray, " m"]], C: float
) -> Iterator[tuple[Columns, Float[np.ndarray, " p"], float]]:
    """Yield a fit on each part of the rows, at the penalty that C is per row of all rows."""
    n = len(design.y)
    for start in range(0, len(parts), _BATCH):
        batch = parts[start : start + _BATCH]
        yield from fit_at(design, batch, [C * n / len(part) for part in batch])


def _decisions(
    fit: tuple[Columns, Float[np.ndarray, " p"], float], rows: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    columns, coef, intercept = fit
    used = np.flatnonzero(coef)
    values = columns._replace(rows=rows).dense(used).astype(np.float64)
    decisions: Float[np.ndarray, " m"] = values @ coef[used] + intercept
    return decisions


def _nearest(
    Z: Matrix,
    n: int,
    sets: Sequence[Int[np.ndarray, " k"]],
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Mean largest |r| of the neurons of one set only with the other set, and of random ones.

    Over the first n rows.
    """
    only = [np.setdiff1d(a, b) for a, b in (sets, sets[::-1])]
    if not any(map(len, only)):
        return np.nan, np.nan
    others = np.setdiff1d(np.arange(Z.shape[1]), np.concatenate(sets))
    drawn = [rng.choice(others, len(neurons)) for neurons in only]
    take = partial(Z.take, np.arange(n))
    means = []
    for neurons in (only, drawn):
        pairs = zip(neurons, sets[::-1], strict=True)
        means.append(np.concatenate([_largest(take(a), take(b)) for a, b in pairs]).mean())
    return float(means[0]), float(means[1])


def _largest(A: Float[np.ndarray, "n a"], B: Float[np.ndarray, "n b"]) -> Float[np.ndarray, " a"]:
    """The largest |r| of each column of A with a column of B; constant columns have r = 0."""
    unit = [M - M.mean(axis=0, dtype=np.float64) for M in (A, B)]
    norms = [np.linalg.norm(M, axis=0) for M in unit]
    a, b = (M / np.where(norm > 0, norm, 1) for M, norm in zip(unit, norms, strict=True))
    largest: Float[np.ndarray, " a"] = np.abs(a.T @ b).max(axis=1)
    return largest


def _halves(
    design: Design, codes: Int[np.ndarray, " g"], rng: np.random.Generator
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Rows of two complementary halves of these groups, both with both labels."""
    for _ in range(100):
        first = rng.permutation(codes)[: len(codes) // 2]
        parts = first, np.setdiff1d(codes, first)
        halves = _rows(design, parts[0]), _rows(design, parts[1])
        if all(len(np.unique(design.y[half])) == 2 for half in halves):
            return halves
    raise HQError("A random half of the groups nearly always has one label: gather more groups.")


def _rows(design: Design, codes: Int[np.ndarray, " g"]) -> Int[np.ndarray, " m"]:
    return np.flatnonzero(np.isin(design.groups, codes))
