"""Cross-fits with several rules that decide how many neurons a probe has, from shared fits.

A rule only selects a solution along a path, so paths and their cross-validation are computed once
per fold. `hq.probe.cross_fit` makes the probes of a study, with thresholds; with its rule, the sets
here have the same neurons and weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import BaseModel, ConfigDict, model_validator

from hq.errors import HQError
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import require_folds
from hq.probe.identify import design_of, loosened, neuron_set, neurons_of
from hq.probe.regularisation import (
    Rule,
    best_auroc,
    fit_sizes,
    one_standard_error,
    validated_path,
)

DEFAULT_RULE = "one-se"
"""The rule of `identify` and `cross_fit`."""
RULES: Mapping[str, Rule] = {DEFAULT_RULE: one_standard_error, "best": best_auroc}
"""Rules that choose C by cross-validation, with fewer neurons than the cap."""


def size_rule(size: int) -> str:
    """Return the name of the rule that takes the fit with at most this number of neurons."""
    return f"{size} neurons"


class FoldSets(BaseModel):
    """A set that is fitted on all responses, and one per fold that has not seen the fold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neurons: NeuronSet
    folds: tuple[NeuronSet, ...]

    @model_validator(mode="after")
    def _has_folds(self) -> Self:
        if len(self.folds) < 2:
            raise ValueError("fewer than two folds")
        return self

    def scores(self, features: Features, folds: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return each response's decision value by the set of its fold; NaN for the fold −1."""
        values = np.full(len(features), np.nan)
        for fold, probe in enumerate(self.folds):
            rows = np.flatnonzero(folds == fold)
            values[rows] = probe.score(features)[rows]
        return values


def cross_fit_by_rule(
    features: Features,
    y: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
    sizes: Sequence[int],
    *,
    repeats: int = 3,
    max_fraction: float = 1e-3,
    seed: int = 0,
    other: Features | None = None,
    finished: Callable[[], object] | None = None,
) -> dict[str, FoldSets]:
    """Return the sets of each of RULES, and of `size_rule` for each of `sizes`.

    A set of a fixed size may exceed `max_fraction`.

    Args:
        features: n traced responses.
        y: Labels, 1 for a hallucinated response.
        groups: The group of each response; a group must lie in one fold.
        folds: The outer fold of each response, numbered from 0.
        sizes: Numbers of neurons.
        repeats: Repeats of the inner cross-validation.
        max_fraction: With a rule of RULES, a set has fewer than this fraction of the neurons.
        seed: Seed of the inner folds.
        other: Features of the other tokens, for 3-vs-1 labels.
        finished: Called after the fits on all responses, after those of each fold, and after those
            of the sizes: k + 2 times for k folds.

    Raises:
        HQError: As `cross_fit` does, or if no fit has so few neurons.
    """
    if not sizes or min(sizes) < 1:
        raise HQError(f"The sizes {list(sizes)} are not numbers of neurons: give one or more.")
    k = require_folds(y, groups, folds)
    design = design_of(features, y, groups, k, other)
    fold_of = folds if other is None else np.concatenate([folds, folds])
    parts = [design.all_rows, *(np.flatnonzero(fold_of != fold) for fold in range(k))]
    cap = max_fraction * features.model.n_neurons
    settings = {"folds": k, "repeats": repeats, "max_fraction": max_fraction, "seed": seed}

    def steps() -> Iterator[dict[str, NeuronSet]]:
        for rows in parts:
            path = validated_path(design, rows, cap, k, repeats, seed)
            yield {
                name: _named(neurons_of(path.choice(rule), design, features, settings), name)
                for name, rule in RULES.items()
            }
            if finished is not None:
                finished()

    sets = list(steps())
    for of_part, fits in zip(sets, fit_sizes(design, parts, sizes), strict=True):
        for size, fit in zip(sizes, fits, strict=True):
            provenance: dict[str, str | int | float] = {
                "precision": features.precision,
                "rule": size_rule(size),
                "n": len(fit.columns.rows),
                **loosened(fit.tolerance),
            }
            fitted = fit.columns, fit.coef, fit.intercept
            of_part[size_rule(size)] = neuron_set(fitted, design, features, provenance)
    if finished is not None:
        finished()
    return {
        name: FoldSets(neurons=sets[0][name], folds=tuple(of_fold[name] for of_fold in sets[1:]))
        for name in sets[0]
    }


def _named(neurons: NeuronSet, rule: str) -> NeuronSet:
    """The set with the name of its rule in its provenance."""
    return neurons.model_copy(update={"provenance": neurons.provenance | {"rule": rule}})
