"""Cross-fitting: every response is scored by a probe that has not seen it or its group.

The probe of fold f is fitted on all other folds: its standardisation, its C and its weights. A
second ring of fits leaves out two folds: the fit without f and g scores the responses of g where
the probe of f needs held-out scores, for its thresholds. So nothing about fold f, which includes
its thresholds, depends on the responses in it.

The set for use is fitted on all responses, and its thresholds are set on the out-of-fold scores.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hq.errors import HQError
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from hq.probe.identify import design_of, neuron_set, neurons_of, with_threshold
from hq.probe.regularisation import CurvePoint, Design, choose_c, fit_at
from hq.storage.atomic import write_whole


class FoldProbe(BaseModel):
    """The probe of one fold, and fits without this fold and another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probe: NeuronSet
    calibration: dict[int, NeuronSet]  # by the other fold that the fit has not seen


class CrossFit(BaseModel):
    """The set for use, fitted on all responses, and the probes that have not seen a fold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neurons: NeuronSet
    folds: tuple[FoldProbe, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        k = len(self.folds)
        for fold, of_fold in enumerate(self.folds):
            if set(of_fold.calibration) != set(range(k)) - {fold}:
                raise ValueError(
                    f"fold {fold} has fits without the folds {set(of_fold.calibration)}"
                )
        return self

    def scores(self, features: Features, folds: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return each response's decision value by the probe of its fold."""
        self._require(folds, len(features))
        values = np.empty(len(features))
        for fold, of_fold in enumerate(self.folds):
            rows = np.flatnonzero(folds == fold)
            values[rows] = of_fold.probe.score(features)[rows]
        return values

    def calibration_scores(
        self, features: Features, folds: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "fold n"]:
        """Return for each fold f the centred decision values of the responses of other folds.

        A response of fold g is scored by the fit without f and g; those of f itself are NaN. From
        each fit's values, its mean over the responses outside of f is subtracted: quantization
        shifts the scores of every fit by another constant, which would widen their joint
        distribution. Add the mean of the probe of f (`means`) to a threshold on centred values.
        """
        self._require(folds, len(features))
        return np.stack(
            [
                _held_out(of_fold.calibration, features, folds, folds != fold)
                for fold, of_fold in enumerate(self.folds)
            ]
        )

    def means(self, features: Features, folds: Int[np.ndarray, " n"]) -> Float[np.ndarray, " fold"]:
        """Return the mean decision value of each fold's probe over the responses outside of it."""
        self._require(folds, len(features))
        return np.array(
            [
                of_fold.probe.score(features)[folds != fold].mean()
                for fold, of_fold in enumerate(self.folds)
            ]
        )

    def require(self, model: ModelIdentity, name: str = "The neuron set") -> None:
        """Raises HQError, with `name` in the message, if the probes belong to another model."""
        self.neurons.require(model, name)

    def save(self, path: str | Path) -> None:
        """Write JSON atomically."""
        write_whole(Path(path), self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, model: ModelIdentity | None = None) -> Self:
        """Read a file that `save` wrote.

        Raises HQError if it is missing or is no such file, or if it belongs to another model.
        """
        try:
            loaded = cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise HQError(
                f"{path} does not hold the probes of a cross-fit: give the file that `hq identify` "
                "wrote."
            ) from error
        if model is not None:
            loaded.require(model, str(path))
        return loaded

    def _require(self, folds: Int[np.ndarray, " m"], n: int) -> None:
        if len(folds) != n:
            raise HQError(f"There are {len(folds)} folds for {n} responses: give one for each.")
        if n == 0 or set(np.unique(folds).tolist()) != set(range(len(self.folds))):
            raise HQError(
                f"The responses are in the folds {np.unique(folds).tolist()}, but the probes are "
                f"of {len(self.folds)} folds from 0: give the responses that were cross-fitted."
            )


class Curves(NamedTuple):
    """The curves from which C was chosen."""

    all: list[CurvePoint]
    without_fold: list[list[CurvePoint]]


def cross_fit(
    features: Features,
    y: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
    *,
    repeats: int = 3,
    max_fraction: float = 1e-3,
    seed: int = 0,
    other: Features | None = None,
    provenance: Mapping[str, str | int | float] | None = None,
    finished: Callable[[], object] | None = None,
) -> tuple[CrossFit, Curves]:
    """Fit the set for use on all responses, and one probe per fold on the responses outside of it.

    C is chosen for each of these fits on its own responses (`hq.probe.regularisation`), in as many
    inner folds as there are outer ones.

    Args:
        features: n traced responses.
        y: Labels, 1 for a hallucinated response.
        groups: The group of each response; a group must lie in one fold.
        folds: The outer fold of each response, numbered from 0.
        repeats: Repeats of the inner cross-validation.
        max_fraction: Every fit has fewer than this fraction of the model's neurons.
        seed: Seed of the inner folds.
        other: Features of the other tokens, for 3-vs-1 labels (`hq.probe.identify.design_of`).
        provenance: Added to that of every set.
        finished: Called after the fit on all responses, and after that of each fold.

    Raises:
        HQError: A group lies in two folds, a fold has one label only, or as `identify` does.
    """
    k = require_folds(y, groups, folds)
    design = design_of(features, y, groups, k, other)
    fold_of = folds if other is None else np.concatenate([folds, folds])
    cap = max_fraction * features.model.n_neurons
    settings = {"folds": k, "repeats": repeats, "max_fraction": max_fraction, "seed": seed}
    added = dict(provenance or {})

    def chosen(rows: Int[np.ndarray, " m"]) -> tuple[NeuronSet, list[CurvePoint]]:
        choice = choose_c(design, rows, cap, k, repeats, seed)
        if finished is not None:
            finished()
        neurons = neurons_of(choice, design, features, settings)
        return _with(neurons, added), choice.curve

    neurons, curve = chosen(design.all_rows)
    of_folds, curves = [], []
    out_of_fold = np.empty(len(y))
    for fold in range(k):
        probe, of_fold = chosen(np.flatnonzero(fold_of != fold))
        calibration = _without_two(design, features, fold_of, fold, k, probe)
        scores, outside = probe.score(features), folds != fold
        held_out = _held_out(calibration, features, folds, outside)
        probe = with_threshold(probe, held_out + scores[outside].mean(), y)
        out_of_fold[~outside] = scores[~outside] - scores[outside].mean()
        of_folds.append(FoldProbe(probe=probe, calibration=calibration))
        curves.append(of_fold)
    neurons = with_threshold(neurons, out_of_fold + neurons.score(features).mean(), y)
    return CrossFit(neurons=neurons, folds=tuple(of_folds)), Curves(curve, curves)


def _held_out(
    calibration: Mapping[int, NeuronSet],
    features: Features,
    folds: Int[np.ndarray, " n"],
    outside: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Centred values of the responses outside of a fold, by the fits without it and their own."""
    values = np.full(len(features), np.nan)
    for other, fitted in calibration.items():
        scores, rows = fitted.score(features), folds == other
        values[rows] = scores[rows] - scores[outside].mean()
    return values


def _without_two(
    design: Design,
    features: Features,
    fold_of: Int[np.ndarray, " n"],
    fold: int,
    k: int,
    probe: NeuronSet,
) -> dict[int, NeuronSet]:
    """The fits without this fold and each other one, at the penalty per row of the fold's probe.

    They have fewer rows, so their C is larger in inverse proportion: at the same C, their weights
    and scores would be smaller than the probe's.
    """
    others = [other for other in range(k) if other != fold]
    parts = [np.flatnonzero((fold_of != fold) & (fold_of != other)) for other in others]
    rows = int((fold_of != fold).sum())
    Cs = [float(probe.provenance["C"]) * rows / len(part) for part in parts]
    fits = zip(others, Cs, fit_at(design, parts, Cs), strict=True)
    return {other: neuron_set(fitted, design, features, {"C": C}) for other, C, fitted in fits}


def _with(neurons: NeuronSet, added: Mapping[str, str | int | float]) -> NeuronSet:
    return neurons.model_copy(update={"provenance": neurons.provenance | dict(added)})


def require_folds(
    y: Int[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"], folds: Int[np.ndarray, " n"]
) -> int:
    """Return the number of folds. Raises HQError if they are not valid."""
    if not (len(y) == len(groups) == len(folds)) or len(y) == 0:
        raise HQError(
            f"There are {len(y)} labels, {len(groups)} groups and {len(folds)} folds: give one of "
            "each per response."
        )
    numbers = np.unique(folds)
    k = len(numbers)
    if k < 3 or numbers.tolist() != list(range(k)):
        raise HQError(
            f"The folds are numbered {numbers.tolist()}: number three or more of them from 0."
        )
    pairs = np.unique(np.stack([np.unique(groups, return_inverse=True)[1], folds]), axis=1)
    if pairs.shape[1] > len(np.unique(groups)):
        raise HQError("A group lies in two folds: keep the responses of a group in one fold.")
    for fold in range(k):
        if len(np.unique(y[folds == fold])) < 2:
            raise HQError(
                f"Fold {fold} has {int((folds == fold).sum())} responses of one label, but both "
                "right and hallucinated ones are needed: gather more, or use fewer folds."
            )
    return k
