"""Identification: from CETT features and labels to the NeuronSet that predicts hallucination.

L1 logistic regression on standardised features. `hq.probe.regularisation` chooses C, and
`hq.probe.cross_fit` scores every response by a probe that has not seen it.
"""

import warnings
from importlib.metadata import version

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import ArrayLike

from hq.errors import HQError
from hq.neurons.features import Features
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.neurons.space import NO_EXPERT
from hq.probe.l1 import SOLVER, TOLERANCE, Columns
from hq.probe.matrix import standardised
from hq.probe.regularisation import RULE, Choice, Design, choose_c
from hq.stats.thresholds import youden_threshold

THRESHOLD = "youden"
MIN_ROUTED = 10  # responses of each class that reach the expert of a neuron


def identify(
    traces: Features,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    folds: int = 5,
    repeats: int = 3,
    max_fraction: float = 1e-3,
    seed: int = 0,
) -> NeuronSet:
    """Find the neurons whose CETT predicts hallucination.

    C is the smallest one whose cross-validated AUROC is at most one standard error below the best,
    among fits with fewer than `max_fraction` of the model's neurons. The threshold `youden`
    maximises sensitivity + specificity − 1 on held-out decision values, each of a fit at the chosen
    C that did not see the response's group.

    Args:
        traces: n traced responses of one model, measure (`sum` or `output`) and span.
        labels: n labels, 1 (or True) for a hallucinated response and 0 for a right one.
        groups: n group labels, such as the entity that a question is about. The rows of a group are
            never in two folds. By default each response is its own group.
        folds: Folds of the cross-validation.
        repeats: How often it is repeated with other folds; the AUROC is the mean.
        max_fraction: The set has fewer than this fraction of the model's neurons.
        seed: Seed of the folds.

    Raises:
        HQError: The labels are not n zeros and ones with both classes, `groups` does not have n
            entries, there are fewer groups of a class than folds, the traces are not finite or are
            contributions, or no fit within the cap has a positive weight.
    """
    y = _labels(labels, len(traces))
    design = design_of(traces, y, _groups(groups, len(traces)), folds)
    choice = choose_c(
        design, design.all_rows, max_fraction * traces.model.n_neurons, folds, repeats, seed
    )
    settings = {"folds": folds, "repeats": repeats, "max_fraction": max_fraction, "seed": seed}
    neurons = neurons_of(choice, design, traces, settings)
    return with_threshold(neurons, choice.held_out, y)


def design_of(
    features: Features,
    y: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"] | None,
    folds: int,
    other: Features | None = None,
) -> Design:
    """Standardise features and check that they fit the labels and groups.

    With `other`, the mean CETT over each response's other tokens, row by row, labels are the
    3-vs-1 labels of Gao et al. (arXiv 2512.01797): the tokens of a hallucinated answer are 1, and
    everything else is 0 (the tokens of right answers, and the other tokens of both). All rows have
    the same weight, because skglm has no weighted logistic loss. AUROCs are between answers.

    Raises HQError for contributions, for features and labels that do not fit together, for NaN, one
    class, too few groups, and `other` with features that are already of the other tokens.
    """
    if features.measure == "contribution":
        raise HQError(
            "Contributions are no shares of a layer's output: identify on sum or output CETT."
        )
    if other is not None:
        _require_other_span(features, other)
    n = len(y)
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    if unit.shape != (n,):
        raise HQError(
            f"There are {len(unit)} groups for {n} responses: pass one group per response."
        )
    arrays, judged = [features.values], np.ones(n, dtype=bool)
    if other is not None:
        if other.values.shape != features.values.shape:
            raise HQError(
                f"Features of other tokens have shape {other.values.shape}, those of answers "
                f"{features.values.shape}: trace both spans of the same responses."
            )
        # An answer and its other tokens are two rows of one group.
        arrays.append(other.values)
        unit, judged = np.concatenate([unit, unit]), np.arange(2 * n) < n
        y = np.concatenate([y, np.zeros_like(y)])
    _check(features, y[:n], folds, unit[:n])
    Z, mean, scale = standardised(arrays, features.model.space)
    return Design(Z, mean, scale, y, unit, judged)


def neurons_of(
    choice: Choice, design: Design, features: Features, settings: dict[str, int | float]
) -> NeuronSet:
    """Return the chosen solution as a NeuronSet, without a threshold, with its provenance."""
    point = choice.point
    if point.tolerance > TOLERANCE:
        warnings.warn(
            f"The L1 fit at C = {point.C:g} met a tolerance of {point.tolerance:g} only, not "
            f"{TOLERANCE:g}: weights near zero may be in or out of the set by chance.",
            stacklevel=3,
        )
    provenance: dict[str, str | int | float] = {
        "precision": features.precision,
        "C": point.C,
        "rule": RULE,
        "n": len(choice.columns.rows),
        **settings,
        "cv_auroc": point.auroc,
        "solver": SOLVER,
        "solver_version": version("skglm"),
        **loosened(point.tolerance),
    }
    fitted = choice.columns, choice.coef, choice.intercept
    return neuron_set(fitted, design, features, provenance)


def loosened(tolerance: float) -> dict[str, float]:
    """Return the entry of a provenance if a fit met no better tolerance than this one."""
    return {"tolerance": tolerance} if tolerance > TOLERANCE else {}


def neuron_set(
    fitted: tuple[Columns, Float[np.ndarray, " p"], float],
    design: Design,
    features: Features,
    provenance: dict[str, str | int | float],
) -> NeuronSet:
    """Return a fit on some rows as a NeuronSet: columns, weights and intercept."""
    columns, coef, intercept = fitted
    # The columns are standardised twice: over all rows, and over the rows of the fit.
    mean = design.mean + design.scale * columns.mean.astype(np.float64)
    scale = design.scale * columns.scale.astype(np.float64)
    return NeuronSet(
        model=features.model,
        cett=features.measure,
        tokens=features.span,
        labels="1-vs-1" if design.judged.all() else "3-vs-1",
        intercept=_shortest(np.float32(intercept)),
        neurons=_neurons(coef, mean, scale, features),
        provenance=provenance | _rarely_routed(coef, design, features),
    )


def with_threshold(
    neurons: NeuronSet, held_out: Float[np.ndarray, " n"], y: Int[np.ndarray, " n"]
) -> NeuronSet:
    """Return the set with the threshold `youden` of held-out decision values; NaN is no value."""
    rows = np.flatnonzero(~np.isnan(held_out[: len(y)]))
    threshold = youden_threshold(held_out[rows], y[rows])
    return neurons.model_copy(update={"thresholds": {THRESHOLD: threshold}})


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


def _neurons(
    coef: Float[np.ndarray, " p"],
    mean: Float[np.ndarray, " p"],
    scale: Float[np.ndarray, " p"],
    features: Features,
) -> tuple[Neuron, ...]:
    space, chosen = features.model.space, np.flatnonzero(coef)
    shares = _routed(features, chosen).mean(axis=0).tolist()
    experts = space.locate(chosen).expert.tolist()
    positions = zip(chosen, space.positions(chosen), experts, strict=True)
    return tuple(
        Neuron(
            layer=position[0],
            expert=None if expert == NO_EXPERT else expert,
            index=position[-1],
            weight=_shortest(coef[flat]),
            mean=_shortest(mean[flat]),
            scale=_shortest(scale[flat]),
            routed=None if expert == NO_EXPERT else share,
        )
        for (flat, position, expert), share in zip(positions, shares, strict=True)
    )


def _routed(features: Features, chosen: Int[np.ndarray, " k"]) -> Bool[np.ndarray, "n k"]:
    """Whether a token of each response was routed to the block of each neuron.

    A neuron's CETT is zero at tokens that are not routed to its expert, so a response in which all
    neurons of an expert are zero did not reach it.
    """
    space, routed = features.model.space, np.ones((len(features), len(chosen)), dtype=bool)
    if not space.has_experts:
        return routed
    blocks = space.block_of(chosen)
    for block in np.unique(blocks):
        reached = (features.values[:, space.slices[block]] != 0).any(axis=1)
        routed[:, blocks == block] = reached[:, None]
    return routed


def _rarely_routed(
    coef: Float[np.ndarray, " p"], design: Design, features: Features
) -> dict[str, int]:
    """How many chosen neurons have experts that few responses of a class reached.

    Such a neuron's weight rests on a few responses, whatever their number in all. Empty for a model
    without experts.
    """
    if not features.model.space.has_experts:
        return {}
    y = design.y[: len(features)]
    routed = _routed(features, np.flatnonzero(coef))
    fewest = np.minimum(routed[y == 1].sum(axis=0), routed[y == 0].sum(axis=0))
    return {"rarely_routed": int((fewest < MIN_ROUTED).sum()), "min_routed": MIN_ROUTED}


def _shortest(value: np.floating) -> float:
    """The shortest decimal that is this float32, so that the JSON can be read and compared."""
    return float(str(np.float32(value)))
