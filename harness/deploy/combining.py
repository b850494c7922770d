"""H-Neurons and token entropy as one score, cross-fitted on the answers of a run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from harness.stages.alarms import Scores
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from harness.store.progress import Task
from hq.backends.base import Backend
from hq.monitor.combination import Combination
from hq.probe.controls import ridge_probe
from hq.probe.stacking import for_folds
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.stats.intervals import Estimate


class Combined(NamedTuple):
    """The combination for use, and the cross-fitted scores of the answers."""

    combination: Combination
    scores: Scores


class Comparison(NamedTuple):
    """AUROCs of the scores that are known while a model answers, and paired differences."""

    entropy: Estimate
    probe: Estimate
    combined: Estimate
    combined_minus_entropy: Estimate
    combined_minus_probe: Estimate


def mean_entropies(
    backend: Backend, samples: Sequence[Sample], task: Task
) -> Float[np.ndarray, " n"]:
    """Return the mean entropy over each answer's tokens, in nats."""
    entropies = np.zeros(len(samples))
    for predictions in backend.predictions([sample.exchange for sample in samples]):
        entropies[predictions.rows] = predictions.means(predictions.entropy)
        task.advance(len(predictions.rows))
    return entropies


def combine(scores: Scores, entropies: Float[np.ndarray, " n"], rows: Rows) -> Combined:
    """Fit H-Neurons and entropy to the labels, for each fold on the other folds.

    The probe's scores of the other folds are by fits that have not seen fold f, so nothing about
    f depends on its labels. The combination for use is fitted on all out-of-fold scores.
    """
    folds, y = rows.folds, rows.y
    centred = scores.out_of_fold - scores.means[folds]
    k = int(folds.max()) + 1
    out_of_fold, means = np.empty(len(y)), np.empty(k)
    calibration = np.full((k, len(y)), np.nan)
    for fold, probe in enumerate(for_folds(centred, scores.calibration)):
        own = folds == fold
        fitted = _fitted(np.column_stack([probe, entropies])[~own], y[~own], scores.means[fold])
        out_of_fold[own] = _decisions(fitted, scores.out_of_fold[own], entropies[own])
        outside = _decisions(fitted, probe[~own, 0] + scores.means[fold], entropies[~own])
        means[fold] = outside.mean()
        calibration[fold, ~own] = outside - means[fold]
    for_use = _fitted(np.column_stack([centred, entropies]), y, scores.mean)
    mean = float(_decisions(for_use, centred + scores.mean, entropies).mean())
    return Combined(for_use, Scores(out_of_fold, calibration, means, mean))


def compare(
    probe: Scores, entropies: Float[np.ndarray, " n"], combined: Scores, rows: Rows
) -> Comparison:
    """Return the AUROC of each score, and how much the combination gains."""
    both, alone = combined.out_of_fold, probe.out_of_fold
    draw = rows.units, rows.folds
    return Comparison(
        *(estimate_auroc(s, rows.y, *draw) for s in (entropies, alone, both)),
        *(estimate_auroc_difference(both, s, rows.y, *draw) for s in (entropies, alone)),
    )


def _fitted(features: Float[np.ndarray, "m 2"], y: np.ndarray, probe_mean: float) -> Combination:
    """Return the fit on centred probe scores and entropies, for scores that are not centred."""
    scaler, regression = ridge_probe(features, y).steps
    weights = regression[1].coef_[0] / scaler[1].scale_
    intercept = float(regression[1].intercept_[0] - weights @ scaler[1].mean_)
    probe, entropy = map(float, weights)
    return Combination(probe, entropy, intercept - probe * float(probe_mean))


def _decisions(
    fitted: Combination, probe: Float[np.ndarray, " m"], entropy: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    decisions: Float[np.ndarray, " m"] = (
        fitted.probe * probe + fitted.entropy * entropy + fitted.intercept
    )
    return decisions
