"""The choice of C: repeated grouped cross-validation, and the one-standard-error rule.

Among the values of C within the sparsity cap, the smallest one is chosen whose AUROC is at most one
standard error below the best (Breiman et al. 1984, "Classification and regression trees", section
3.4.3). The C with the best prediction selects many neurons without an effect (Meinshausen &
Bühlmann 2006, "High-dimensional graphs and variable selection with the Lasso"), and one
cross-validation is noisy, so it is repeated with other folds. `hq bench identify` compares rules on
planted neurons.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict

from hq.errors import HQError
from hq.probe.l1 import Columns, L1Path, l1_path, l1_paths, smallest_c
from hq.probe.matrix import Matrix
from hq.stats.auroc import auroc_statistic
from hq.stats.intervals import Estimate, Weights, estimate

RULE = "one standard error below the best AUROC"

# Multiples of the smallest C that selects a neuron, from a handful of neurons to far past the cap,
# in steps of a tenth, because the number of neurons grows fast with C.
_DEFAULT_GRID = np.geomspace(1.1, 100.0, 48)


class Design(NamedTuple):
    """Standardised features with labels and groups, of which fits see parts of the rows."""

    Z: Matrix  # mean 0 and variance 1 over all rows
    mean: Float[np.ndarray, " p"]
    scale: Float[np.ndarray, " p"]
    y: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    judged: Bool[np.ndarray, " n"]  # rows that count in the AUROC: the answers

    @property
    def all_rows(self) -> Int[np.ndarray, " n"]:
        """The indices of all rows."""
        return np.arange(len(self.y))

    def decisions(
        self, columns: Columns, path: L1Path, rows: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "c m"]:
        """Return the decision values of rows by each solution of a path that was fitted there."""
        used = np.unique(path.weights.indices)
        seen = columns._replace(rows=rows).dense(used).astype(np.float64)
        weights = path.weights[:, used].toarray()
        values: Float[np.ndarray, "c m"] = weights @ seen.T + path.intercepts[:, None]
        return values


class CurvePoint(BaseModel):
    """One C: cross-validated AUROC and deviance, and the number of neurons on all rows."""

    model_config = ConfigDict(frozen=True)

    C: float
    auroc: float  # between answers of one held-out fold, mean over repeats
    auroc_se: float  # jackknife over groups
    deviance: float  # mean −2 log-likelihood per held-out answer, mean over repeats
    n_nonzero: int
    n_positive: int
    tolerance: float  # loosest that a fit at this C met; see hq.probe.l1


Rule = Callable[[Sequence[CurvePoint]], int]
"""Chooses the index of a point of a curve, in ascending order of C."""


class Choice(NamedTuple):
    """The chosen solution, and what it was chosen from."""

    point: CurvePoint
    columns: Columns
    coef: Float[np.ndarray, " p"]
    intercept: float
    curve: list[CurvePoint]
    held_out: Float[np.ndarray, " n"]  # of the first repeat at this C; NaN outside of the rows


class Sized(NamedTuple):
    """The solution of a path that has at most a given number of neurons."""

    columns: Columns
    coef: Float[np.ndarray, " p"]
    intercept: float
    tolerance: float  # that the fit met; see hq.probe.l1


class ValidatedPath(NamedTuple):
    """The eligible solutions on some rows, each with its cross-validation."""

    columns: Columns
    path: L1Path
    curve: list[CurvePoint]
    held_out: Float[np.ndarray, "c n"]  # of the first repeat

    def choice(self, rule: Rule) -> Choice:
        """Return the solution that a rule chooses."""
        i = rule(self.curve)
        return Choice(
            self.curve[i],
            self.columns,
            self.path.coef(i),
            float(self.path.intercepts[i]),
            self.curve,
            self.held_out[i],
        )


def one_standard_error(curve: Sequence[CurvePoint]) -> int:
    """Return the index of the smallest C with an AUROC at most one standard error below the best.

    The standard error is that of the best AUROC.
    """
    best = curve[best_auroc(curve)]
    return next(i for i, p in enumerate(curve) if p.auroc >= best.auroc - best.auroc_se)


def best_auroc(curve: Sequence[CurvePoint]) -> int:
    """Return the index of the smallest C with the best cross-validated AUROC."""
    return max(range(len(curve)), key=lambda i: curve[i].auroc)


def choose_c(
    design: Design,
    rows: Int[np.ndarray, " m"],
    cap: float,
    folds: int,
    repeats: int,
    seed: int,
    Cs: Sequence[float] | None = None,
) -> Choice:
    """Fit the path on these rows, and choose C by cross-validation: see `validated_path`."""
    return validated_path(design, rows, cap, folds, repeats, seed, Cs).choice(one_standard_error)


def validated_path(
    design: Design,
    rows: Int[np.ndarray, " m"],
    cap: float,
    folds: int,
    repeats: int,
    seed: int,
    Cs: Sequence[float] | None = None,
) -> ValidatedPath:
    """Fit the path on these rows, and cross-validate every eligible C within them.

    A C is eligible if its fit on the rows has fewer than `cap` non-zero weights, one of them
    positive; the path ends at the first C above the cap. Folds are stratified by label, never
    divide a group, and differ between repeats. Raises HQError if no C is eligible, or if a fold has
    one label only.
    """
    (columns,) = Columns.parts(design.Z, [rows])
    path = l1_path(columns, design.y[rows], _grid(columns, design.y[rows], Cs), int(cap))
    path = _eligible(path, cap)
    curve, first = _cross_validate(design, rows, path, folds, repeats, seed)
    return ValidatedPath(columns, path, curve, first)


def fit_sizes(
    design: Design, parts: Sequence[Int[np.ndarray, " m"]], sizes: Sequence[int]
) -> list[list[Sized]]:
    """Fit the path on each part of the rows, and return a solution for each number of neurons.

    Without cross-validation: each is the solution at the largest C of the grid with at most this
    number of non-zero weights. Raises HQError if the first solution has more.
    """
    columns = Columns.parts(design.Z, parts)
    labels = [design.y[rows] for rows in parts]
    grids = [_grid(of_part, y, None) for of_part, y in zip(columns, labels, strict=True)]
    paths = l1_paths(columns, labels, grids, max_nonzero=max(sizes))
    return [
        [_of_size(of_part, path, size) for size in sizes]
        for of_part, path in zip(columns, paths, strict=True)
    ]


def _of_size(columns: Columns, path: L1Path, size: int) -> Sized:
    fitting = np.flatnonzero((path.n_nonzero <= size) & (path.n_nonzero > 0))
    if not fitting.size:
        raise HQError(
            f"No C selects from 1 to {size} neurons: the fits have {path.n_nonzero.tolist()}; ask "
            "for more neurons."
        )
    i = fitting[-1]
    return Sized(columns, path.coef(i), float(path.intercepts[i]), float(path.tolerances[i]))


def fit_at(
    design: Design, parts: Sequence[Int[np.ndarray, " m"]], Cs: Sequence[float]
) -> Iterator[tuple[Columns, Float[np.ndarray, " p"], float]]:
    """Yield columns, weights and intercept of a fit on each part of the rows, at its C."""
    columns = Columns.parts(design.Z, parts)
    labels = [design.y[rows] for rows in parts]
    # A few smaller C lead to the solution faster than a fit from zero.
    steps = [np.geomspace(C / 4, C, 4).tolist() for C in Cs]
    for of_part, path in zip(columns, l1_paths(columns, labels, steps), strict=True):
        yield of_part, path.coef(-1), float(path.intercepts[-1])


def grouped_folds(
    design: Design, rows: Int[np.ndarray, " m"], folds: int, seed: int
) -> list[Int[np.ndarray, " test"]]:
    """Return the rows of each fold; a group is never divided. Raises HQError for a one-label fold.

    Both labels must occur among the judged rows of a fold, and among the rows outside of it.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    y = design.y[rows]
    parts: list[Int[np.ndarray, " test"]] = []
    for train, test in splitter.split(y, y, design.groups[rows]):
        held_out = rows[test]
        judged = design.y[held_out[design.judged[held_out]]]
        if len(np.unique(judged)) < 2 or len(np.unique(y[train])) < 2:
            raise HQError(
                f"A fold of {folds} holds one class only, as its groups are large: use fewer folds."
            )
        parts.append(held_out)
    return parts


def _grid(columns: Columns, y: Int[np.ndarray, " m"], Cs: Sequence[float] | None) -> list[float]:
    """Return the given values of C in ascending order, or those of the default grid."""
    grid = smallest_c(columns, y) * _DEFAULT_GRID if Cs is None else np.asarray(Cs)
    if grid.size == 0 or not (np.isfinite(grid).all() and (grid > 0).all()):
        raise HQError("Every C must be a positive number, and there must be one: check the list.")
    return sorted(grid.tolist())


def _eligible(path: L1Path, cap: float) -> L1Path:
    """The solutions under the cap that have a positive weight."""
    keep = (path.n_nonzero < cap) & (path.n_positive > 0)
    if not keep.any():
        raise HQError(
            f"No C selects an H-Neuron within the cap of {cap:g} non-zero weights "
            f"(from C = {path.Cs[0]:g} on, the fits have {path.n_nonzero.tolist()}): "
            "gather more samples, or raise max_fraction."
        )
    return path.kept(keep)


def _cross_validate(
    design: Design,
    rows: Int[np.ndarray, " m"],
    path: L1Path,
    folds: int,
    repeats: int,
    seed: int,
) -> tuple[list[CurvePoint], Float[np.ndarray, "c n"]]:
    """Return the curve, and the held-out decision values of the first repeat."""
    n = len(design.y)
    scores = np.full((repeats, len(path.Cs), n), np.nan)
    fold_of = np.zeros((repeats, n), dtype=np.int64)
    tolerances = path.tolerances
    tests = [
        (repeat, fold, test)
        for repeat in range(repeats)
        for fold, test in enumerate(grouped_folds(design, rows, folds, seed + repeat))
    ]
    trains = [np.setdiff1d(rows, test, assume_unique=True) for _, _, test in tests]
    parts = Columns.parts(design.Z, trains)
    Cs = [path.Cs.tolist()] * len(parts)
    fitted = l1_paths(parts, [design.y[train] for train in trains], Cs)
    for (repeat, fold, test), columns, of_fold in zip(tests, parts, fitted, strict=True):
        tolerances = np.maximum(tolerances, of_fold.tolerances)
        judged = test[design.judged[test]]
        scores[repeat][:, judged] = design.decisions(columns, of_fold, judged)
        fold_of[repeat, judged] = fold
    judged = rows[design.judged[rows]]
    y, groups = design.y[judged], design.groups[judged]
    curve = []
    for i, C in enumerate(path.Cs):
        of_c = scores[:, i, judged]
        area = _mean_auroc(of_c, fold_of[:, judged], y, groups)
        loss = np.logaddexp(0, np.where(y == 1, -of_c, of_c)).mean()
        curve.append(
            CurvePoint(
                C=float(C),
                auroc=area.value,
                auroc_se=float(area.se or 0.0),
                deviance=float(2 * loss),
                n_nonzero=int(path.n_nonzero[i]),
                n_positive=int(path.n_positive[i]),
                tolerance=float(tolerances[i]),
            )
        )
    return curve, scores[0]


def _mean_auroc(
    scores: Float[np.ndarray, "repeats m"],
    folds: Int[np.ndarray, "repeats m"],
    y: Int[np.ndarray, " m"],
    groups: Int[np.ndarray, " m"],
) -> Estimate:
    """The AUROC within folds, mean over repeats, with its standard error over groups."""
    of_repeats = [auroc_statistic(s, y, f) for s, f in zip(scores, folds, strict=True)]

    def mean(weights: Weights) -> Float[np.ndarray, " weightings"]:
        values: Float[np.ndarray, " weightings"] = np.mean(
            [statistic(weights) for statistic in of_repeats], axis=0
        )
        return values

    return estimate(mean, len(y), groups, "AUROC")
