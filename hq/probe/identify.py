"""Identification: from CETT features and labels to the NeuronSet that predicts hallucination.

L1 logistic regression on standardised features. C is chosen by cross-validation among the values
that stay within the sparsity cap.
"""

import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from hq.errors import HQError
from hq.neurons.features import Features, standardise
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.neurons.space import NeuronSpace
from hq.probe.l1 import SOLVER, TOLERANCE, L1Path, l1_path, smallest_c
from hq.stats.bootstrap import auroc
from hq.stats.thresholds import youden_threshold

# Multiples of the smallest C that selects a neuron, from a handful of neurons to far past the cap,
# in steps of a tenth, because the number of neurons grows fast with C.
_DEFAULT_GRID = np.geomspace(1.1, 100.0, 48)


class PathPoint(BaseModel):
    """One C of the path: AUROC over the held-out folds, and the number of neurons on all rows."""

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
    traces: Features,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    folds: int = 5,
    max_fraction: float = 1e-3,
    seed: int = 0,
) -> NeuronSet:
    """Find the neurons whose CETT predicts hallucination.

    The method is that of `identify_with_path`. The threshold `youden` maximises sensitivity +
    specificity − 1 on out-of-fold decision values, each of a fit at the chosen C that did not see
    the response's group.

    Args:
        traces: n traced responses of one model, measure (`sum` or `output`) and span.
        labels: n labels, 1 (or True) for a hallucinated response and 0 for a right one.
        groups: n group labels, such as the entity that a question is about. The rows of a group are
            never in two folds. By default each response is its own group.
        folds: Folds of the cross-validation.
        max_fraction: The set has fewer than this fraction of the model's neurons.
        seed: Seed of the folds.

    Raises:
        HQError: The labels are not n zeros and ones with both classes, `groups` does not have n
            entries, there are fewer groups of a class than folds, the traces are not finite or are
            contributions, or no fit within the cap has a positive weight.
    """
    y, of_group = _labels(labels, len(traces)), _groups(groups, len(traces))
    neurons, _ = identify_with_path(
        traces, y, folds=folds, groups=of_group, max_fraction=max_fraction, seed=seed
    )
    design = _stack(traces.values, y, of_group, None)
    C = float(neurons.provenance["C"])
    scores = np.empty(len(y))
    for train, test in _folds(design, folds, seed):
        scores[test] = _out_of_fold(design, C, train, test)
    provenance: dict[str, str | int | float] = {"precision": traces.precision}
    return neurons.model_copy(
        update={
            "thresholds": {"youden": youden_threshold(scores, y)},
            "provenance": neurons.provenance | provenance,
        }
    )


def _labels(labels: ArrayLike, n: int) -> Int[np.ndarray, " n"]:
    """The labels as integers. Raises HQError for anything but n zeros and ones."""
    values = np.asarray(labels)
    if values.ndim != 1 or len(values) != n:
        raise HQError(
            f"The labels have shape {values.shape}, but {n} responses were traced: pass one label "
            "per response."
        )
    if values.dtype.kind not in "biuf":
        raise HQError(
            f"The labels are of type {values.dtype}: pass 1 for a hallucinated response and 0 for "
            "a right one."
        )
    if not np.isin(values, (0, 1)).all():
        wrong = int(np.flatnonzero(~np.isin(values, (0, 1)))[0])
        raise HQError(
            f"Label {wrong} is {values[wrong]}: pass 1 for a hallucinated response and 0 for a "
            "right one, and leave other responses out of the traces."
        )
    if len(np.unique(values)) == 1:
        raise HQError(
            f"All {n} labels are {int(values[0])}: identification needs both hallucinated and "
            "right responses."
        )
    return values.astype(np.int64)


def _groups(groups: ArrayLike | None, n: int) -> Shaped[np.ndarray, " n"] | None:
    """The groups as an array. Raises HQError if there are not n of them, or one is missing."""
    if groups is None:
        return None
    values = np.asarray(groups)
    if values.ndim != 1 or len(values) != n:
        raise HQError(
            f"The groups have shape {values.shape}, but {n} responses were traced: pass one group "
            "per response."
        )
    missing = [g is None or g != g for g in values.tolist()]
    if any(missing):
        raise HQError(
            f"Response {missing.index(True)} has no group (None or NaN): name the group of every "
            "response."
        )
    return values


def identify_with_path(
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
    """Find the neurons whose CETT separates hallucinated (y = 1) from right (y = 0) responses.

    The set has the model, measure and span of the features, and no threshold. C has the best mean
    AUROC over grouped stratified folds, standardised within each fold; ties go to the sparser fit.
    A C is eligible if its fit on all rows has fewer than `max_fraction`·p non-zero weights, one of
    them positive, and the path ends at the first C above that cap. Rows of one group (for example,
    an entity) never appear in both parts of a fold. `Cs` defaults to a grid that starts where the
    first weight becomes non-zero.

    With `other`, the mean CETT over each response's other tokens, row by row, labels are the
    3-vs-1 labels of Gao et al. (arXiv 2512.01797): the tokens of a hallucinated answer are 1, and
    everything else is 0 (the tokens of right answers, and the other tokens of both). All rows have
    the same weight, because skglm has no weighted logistic loss. C is still chosen by the AUROC
    between answers.

    Returns the set, and the eligible part of the path.

    Raises HQError for contributions, for features and labels that do not fit together, for NaN, one
    class, too few groups, `other` with features that are already of the other tokens, and if no C
    is eligible.
    """
    model, cett = features.model, features.measure
    if cett == "contribution":
        raise HQError(
            "Contributions are no shares of a layer's output: identify on sum or output CETT."
        )
    if other is not None:
        _require_other_span(features, other)
    design = _stack(features.values, y, groups, None if other is None else other.values)
    _check(features, y, folds, design.groups[: len(y)])
    fitted = standardise(design.X, space=model.space)
    grid = smallest_c(fitted.Z, design.y) * _DEFAULT_GRID if Cs is None else np.asarray(Cs)
    cap = max_fraction * model.n_neurons
    path = _eligible(l1_path(fitted.Z, design.y, _positive(grid), max_nonzero=int(cap)), cap)
    points = _cross_validate(design, path, folds, seed)
    best = max(range(len(points)), key=lambda i: (points[i].auroc_mean, -points[i].n_nonzero))
    chosen = NeuronSet(
        model=model,
        cett=cett,
        tokens=features.span,
        labels="1-vs-1" if other is None else "3-vs-1",
        intercept=_shortest(path.intercepts[best]),
        neurons=_neurons(path.coefs[best], fitted.mean, fitted.scale, model.space),
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
    """The tolerance, for provenance, if a fit did not meet TOLERANCE, with a warning."""
    if point.tolerance <= TOLERANCE:
        return {}
    warnings.warn(
        f"The L1 fit at C = {point.C:g} met a tolerance of {point.tolerance:g} only, not "
        f"{TOLERANCE:g}: weights near zero may be in or out of the set by chance.",
        stacklevel=3,
    )
    return {"tolerance": point.tolerance}


def _require_other_span(features: Features, other: Features) -> None:
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
        raise HQError(
            f"There are {len(unit)} groups for {n} responses: pass one group per response."
        )
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
    by_fold = [_held_out(design, path.Cs, *split) for split in _folds(design, folds, seed)]
    areas = np.array([areas for areas, _ in by_fold])  # [folds, c]
    tolerances = np.max([path.tolerances, *(loosest for _, loosest in by_fold)], axis=0)
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
    """For each C, AUROC on the test rows of a fit on the training rows; and the tolerances."""
    scores, path = _fold_scores(design, Cs, train, test)
    return [auroc(of_c, design.y[test]) for of_c in scores], path.tolerances


def _out_of_fold(
    design: _Design, C: float, train: Int[np.ndarray, " train"], test: Int[np.ndarray, " test"]
) -> Float[np.ndarray, " test"]:
    """Decision values of the test rows, by a fit at C on the training rows."""
    scores, path = _fold_scores(design, np.array([C]), train, test)
    decisions: Float[np.ndarray, " test"] = scores[0] + path.intercepts[0]
    return decisions


def _fold_scores(
    design: _Design,
    Cs: Float[np.ndarray, " c"],
    train: Int[np.ndarray, " train"],
    test: Int[np.ndarray, " test"],
) -> tuple[list[Float[np.ndarray, " test"]], L1Path]:
    """Decision values of the test rows without intercepts, for each C, and the path."""
    fold = standardise(design.X, rows=train)
    path = l1_path(fold.Z, design.y[train], Cs.tolist())
    used = np.flatnonzero(path.coefs.any(axis=0))
    seen = (design.X[np.ix_(test, used)] - fold.mean[used]) / fold.scale[used]
    return [seen @ coef[used] for coef in path.coefs], path


def _neurons(
    coef: Float[np.ndarray, " p"],
    mean: Float[np.ndarray, " p"],
    scale: Float[np.ndarray, " p"],
    space: NeuronSpace,
) -> tuple[Neuron, ...]:
    chosen = np.flatnonzero(coef)
    layers, _, indices = space.locate(chosen)
    return tuple(
        Neuron(
            layer=layer,
            index=index,
            weight=_shortest(coef[flat]),
            mean=_shortest(mean[flat]),
            scale=_shortest(scale[flat]),
        )
        for flat, layer, index in zip(chosen, layers.tolist(), indices.tolist(), strict=True)
    )


def _shortest(value: np.floating) -> float:
    """The shortest decimal that is this float32, so that the JSON can be read and compared."""
    return float(str(np.float32(value)))
