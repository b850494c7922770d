"""Identification: from CETT features and labels to the NeuronSet that predicts hallucination.

L1 logistic regression on standardised features; C by cross-validation, among those that stay
within the sparsity cap.
"""

import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import BaseModel, ConfigDict

from hq.errors import HQError
from hq.neurons.features import Features, standardise
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.probe.l1 import SOLVER, TOLERANCE, L1Path, l1_path, smallest_c
from hq.stats.bootstrap import auroc

# Multiples of the smallest C that selects anything, from a handful of neurons to far past the cap;
# in steps of a tenth, as the number of neurons grows fast with C.
_DEFAULT_GRID = np.geomspace(1.1, 100.0, 48)


class PathPoint(BaseModel):
    """One C of the path: AUROC over the held-out folds, and the size of the fit on all rows."""

    model_config = ConfigDict(frozen=True)

    C: float
    auroc_mean: float
    auroc_sd: float
    n_nonzero: int
    n_positive: int
    tolerance: (
        float  # loosest that a fit at this C met, on all rows or on a fold's; see hq.probe.l1
    )


class _Design(NamedTuple):
    X: Float[np.ndarray, "n p"]
    y: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    judged: Bool[np.ndarray, " n"]  # rows that count in the AUROC: the answers


def identify(
    features: Features,
    y: Int[np.ndarray, " n"],
    *,
    Cs: Sequence[float] | None = None,
    folds: int = 5,
    groups: Shaped[np.ndarray, " n"] | None = None,
    max_fraction: float = 1e-3,
    seed: int = 0,
    other: Features | None = None,
) -> tuple[NeuronSet, list[PathPoint]]:
    """Find the neurons whose CETT tells hallucinated (y = 1) from right (y = 0) responses.

    The set is of the features' model, measure and span.
    C has the best mean AUROC over grouped stratified folds (ties go to the sparser), standardised
    within each, among those whose fit on all rows has fewer than `max_fraction`·p non-zero weights,
    one of them positive. The path ends at the first C over that cap. Rows of one group (say, an
    entity) never stand on both sides of a fold. `Cs` defaults to a grid that starts where the first
    weight becomes non-zero. The returned path holds the eligible Cs only.

    With `other`, the mean CETT over each response's other tokens, row by row, labels are the
    paper's 3-vs-1: a hallucinated answer's tokens are 1, everything else is 0 (right answers'
    tokens, other tokens of both). Rows count alike, 1 to 3, as skglm has no weighted logistic loss;
    C is still chosen by the AUROC between answers, which is what the set is for.

    Raises HQError for contributions, which are no shares, for features or labels that do not fit
    together, NaN, one class, too few groups, `other` where the features are those of the other
    tokens already, or when no C is eligible.
    """
    model, cett = features.model, features.measure
    if cett == "contribution":
        raise HQError(
            "Contributions are no shares of a layer's output: identify on sum or output CETT."
        )
    if other is not None:
        _require_beside(features, other)
    design = _stack(features.values, y, groups, None if other is None else other.values)
    _check(features, y, folds, design.groups[: len(y)])
    whole = standardise(design.X, d_ff=model.d_ff)
    grid = smallest_c(whole.Z, design.y) * _DEFAULT_GRID if Cs is None else np.asarray(Cs)
    cap = max_fraction * model.n_neurons
    path = _eligible(l1_path(whole.Z, design.y, _positive(grid), max_nonzero=int(cap)), cap)
    points = _cross_validate(design, path, folds, seed)
    best = max(range(len(points)), key=lambda i: (points[i].auroc_mean, -points[i].n_nonzero))
    chosen = NeuronSet(
        model=model,
        cett=cett,
        tokens=features.span,
        labels="1-vs-1" if other is None else "3-vs-1",
        intercept=_shortest(path.intercepts[best]),
        neurons=_neurons(path.coefs[best], whole.mean, whole.scale, model.d_ff),
        provenance={
            "C": points[best].C,
            "n": len(design.y),
            "seed": seed,
            "folds": folds,
            "max_fraction": max_fraction,
            "cv_auroc": points[best].auroc_mean,
            "solver": SOLVER,
            "solver_version": version("skglm"),
            **_loose(points[best]),
        },
    )
    return chosen, points


def _loose(point: PathPoint) -> dict[str, float]:
    """The tolerance, for provenance, where a fit did not meet TOLERANCE; also a warning."""
    if point.tolerance <= TOLERANCE:
        return {}
    warnings.warn(
        f"The L1 fit at C = {point.C:g} met a tolerance of {point.tolerance:g} only, not "
        f"{TOLERANCE:g}: weights near zero may be in or out of the set by chance.",
        stacklevel=3,
    )
    return {"tolerance": point.tolerance}


def _require_beside(features: Features, other: Features) -> None:
    """Raises HQError unless `other` is of the other tokens of the same responses."""
    if features.span == "other":
        raise HQError(
            "3-vs-1 sets the chosen tokens against the other ones, so tokens cannot be 'other': "
            "choose 'answer' or 'prompt'."
        )
    kinds = [(f.measure, f.model, f.precision) for f in (features, other)]
    if other.span != "other" or kinds[0] != kinds[1]:
        raise HQError(
            f"The features of other tokens are {other.measure} over the {other.span} span at "
            f"{other.precision}: trace {features.measure} over the other span at "
            f"{features.precision}."
        )


def _stack(
    X: Float[np.ndarray, "n p"],
    y: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"] | None,
    other: Float[np.ndarray, "n p"] | None,
) -> _Design:
    """One row per response, or two (its answer and its other tokens) in one and the same group."""
    n = len(y)
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    if unit.shape != (n,):
        raise HQError(f"There are {len(unit)} groups for {n} responses: give one group a response.")
    if other is None:
        return _Design(X, y, unit, np.ones(n, dtype=bool))
    if other.shape != X.shape:
        raise HQError(
            f"Features of other tokens have shape {other.shape}, those of answers {X.shape}: "
            "trace both spans of the same responses."
        )
    return _Design(
        X=np.concatenate([X, other]),
        y=np.concatenate([y, np.zeros_like(y)]),
        groups=np.concatenate([unit, unit]),
        judged=np.arange(2 * n) < n,
    )


def _check(
    features: Features,
    y: Int[np.ndarray, " n"],
    folds: int,
    groups: Int[np.ndarray, " n"],
) -> None:
    if len(y) == 0:
        raise HQError("There are no labelled responses: sample and judge some first.")
    if len(features) != len(y):
        raise HQError(
            f"There are features of {len(features)} responses and {len(y)} labels: trace these "
            "responses."
        )
    if not np.isin(y, (0, 1)).all():
        raise HQError("Labels must be 0 (right) or 1 (hallucinated): relabel the others.")
    for label, word in ((1, "hallucinated"), (0, "right")):
        count = len(np.unique(groups[y == label]))
        if folds < 2 or count < folds:
            raise HQError(
                f"There are {count} groups of {word} responses for {folds} folds: "
                "gather more of them, or use fewer folds (2 at least)."
            )


def _positive(grid: Float[np.ndarray, " c"]) -> list[float]:
    if grid.size == 0 or not (np.isfinite(grid).all() and (grid > 0).all()):
        raise HQError("Every C must be a positive number, and there must be one: check the list.")
    return sorted(grid.tolist())


def _eligible(path: L1Path, cap: float) -> L1Path:
    """The solutions under the cap that have a positive weight."""
    keep = (path.n_nonzero < cap) & (path.coefs > 0).any(axis=1)
    if not keep.any():
        raise HQError(
            f"No C selects an H-Neuron within the cap of {cap:g} non-zero weights "
            f"(from C = {path.Cs[0]:g} on, the fits have {path.n_nonzero.tolist()}): "
            "gather more samples, or raise max_fraction."
        )
    return L1Path(*(part[keep] for part in path))


def _cross_validate(design: _Design, path: L1Path, folds: int, seed: int) -> list[PathPoint]:
    found = [_held_out(design, path.Cs, *split) for split in _folds(design, folds, seed)]
    areas = np.array([areas for areas, _ in found])  # [folds, c]
    tolerances = np.max([path.tolerances, *(loosest for _, loosest in found)], axis=0)
    return [
        PathPoint(
            C=float(C),
            auroc_mean=float(mean),
            auroc_sd=float(sd),
            n_nonzero=int(np.count_nonzero(coef)),
            n_positive=int(np.count_nonzero(coef > 0)),
            tolerance=float(tolerance),
        )
        for C, mean, sd, coef, tolerance in zip(
            path.Cs,
            areas.mean(axis=0),
            areas.std(axis=0, ddof=1),
            path.coefs,
            tolerances,
            strict=True,
        )
    ]


def _folds(
    design: _Design, folds: int, seed: int
) -> Iterator[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]]:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(design.y, design.y, design.groups):
        judged = test[design.judged[test]]
        if len(np.unique(design.y[judged])) < 2 or len(np.unique(design.y[train])) < 2:
            raise HQError(
                f"A fold of {folds} holds one class only, as its groups are large: use fewer folds."
            )
        yield train, judged


def _held_out(
    design: _Design,
    Cs: Float[np.ndarray, " c"],
    train: Int[np.ndarray, " train"],
    test: Int[np.ndarray, " test"],
) -> tuple[list[float], Float[np.ndarray, " c"]]:
    """For each C, AUROC on the test rows, fitted on the training rows; and the tolerance met."""
    fold = standardise(design.X, rows=train)
    path = l1_path(fold.Z, design.y[train], Cs.tolist())
    used = np.flatnonzero(path.coefs.any(axis=0))
    seen = (design.X[np.ix_(test, used)] - fold.mean[used]) / fold.scale[used]
    return [auroc(seen @ coef[used], design.y[test]) for coef in path.coefs], path.tolerances


def _neurons(
    coef: Float[np.ndarray, " p"],
    mean: Float[np.ndarray, " p"],
    scale: Float[np.ndarray, " p"],
    d_ff: int,
) -> tuple[Neuron, ...]:
    return tuple(
        Neuron(
            layer=int(flat) // d_ff,
            index=int(flat) % d_ff,
            weight=_shortest(coef[flat]),
            mean=_shortest(mean[flat]),
            scale=_shortest(scale[flat]),
        )
        for flat in np.flatnonzero(coef)
    )


def _shortest(value: np.floating) -> float:
    """The shortest decimal that is this float32, so that the JSON can be read and compared."""
    return float(str(np.float32(value)))
