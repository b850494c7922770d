"""H-Neurons and token probabilities as one score, cross-fitted on the answers of a run."""

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
from hq.probe.stacking import for_folds, stacked
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.stats.intervals import Estimate


class Combined(NamedTuple):
    """The combination for use, and the cross-fitted scores of the answers."""

    combination: Combination
    scores: Scores


class Comparison(NamedTuple):
    """AUROCs of the scores that are known while a model answers, and paired differences."""

    entropy: Estimate
    log_probability: Estimate
    uncertainty: Estimate  # both, without H-Neurons
    probe: Estimate
    combined: Estimate
    combined_minus_uncertainty: Estimate
    combined_minus_entropy: Estimate
    combined_minus_probe: Estimate


def uncertainties(
    backend: Backend, samples: Sequence[Sample], task: Task
) -> Float[np.ndarray, "n 2"]:
    """Return mean entropy and mean surprisal over each answer's tokens, in nats."""
    values = np.zeros((len(samples), 2))
    for predictions in backend.predictions([sample.exchange for sample in samples]):
        of_batch = (predictions.entropy, -predictions.log_prob)
        values[predictions.rows] = np.column_stack([*map(predictions.means, of_batch)])
        task.advance(len(predictions.rows))
    return values


def combine(scores: Scores, uncertainty: Float[np.ndarray, "n 2"], rows: Rows) -> Combined:
    """Fit H-Neurons, entropy and surprisal to the labels, for each fold on the other folds.

    The probe's scores of the other folds are by fits that have not seen fold f, so nothing about
    f depends on its labels. The combination for use is fitted on all out-of-fold scores.
    """
    folds, y = rows.folds, rows.y
    centred = scores.out_of_fold - scores.means[folds]
    k = int(folds.max()) + 1
    out_of_fold, means = np.empty(len(y)), np.empty(k)
    calibration = np.full((k, len(y)), np.nan)
    for fold, probe in enumerate(for_folds(centred, scores.calibration)):
        own, mean = folds == fold, scores.means[fold]
        fitted = _fitted(np.column_stack([probe, uncertainty])[~own], y[~own], mean)
        out_of_fold[own] = _decisions(fitted, scores.out_of_fold[own], uncertainty[own])
        outside = _decisions(fitted, probe[~own, 0] + mean, uncertainty[~own])
        means[fold] = outside.mean()
        calibration[fold, ~own] = outside - means[fold]
    for_use = _fitted(np.column_stack([centred, uncertainty]), y, scores.mean)
    mean = float(_decisions(for_use, centred + scores.mean, uncertainty).mean())
    return Combined(for_use, Scores(out_of_fold, calibration, means, mean))


def compare(
    probe: Scores, uncertainty: Float[np.ndarray, "n 2"], combined: Scores, rows: Rows
) -> Comparison:
    """Return the AUROC of each score, and how much the combination gains."""
    y, draw = rows.y, (rows.units, rows.folds)
    alone = stacked([uncertainty] * (int(rows.folds.max()) + 1), y, rows.folds)
    both = combined.out_of_fold
    compared = (*uncertainty.T, alone, probe.out_of_fold, both)
    return Comparison(
        *(estimate_auroc(scores, y, *draw) for scores in compared),
        *(
            estimate_auroc_difference(both, scores, y, *draw)
            for scores in (alone, uncertainty[:, 0], probe.out_of_fold)
        ),
    )


def _fitted(features: Float[np.ndarray, "m 3"], y: np.ndarray, probe_mean: float) -> Combination:
    """Return the fit on centred probe scores, entropy and surprisal, for scores not centred."""
    scaler, regression = ridge_probe(features, y).steps
    weights = regression[1].coef_[0] / scaler[1].scale_
    intercept = float(regression[1].intercept_[0] - weights @ scaler[1].mean_)
    probe, entropy, surprisal = map(float, weights)
    return Combination(probe, entropy, intercept - probe * float(probe_mean), surprisal)


def _decisions(
    fitted: Combination, probe: Float[np.ndarray, " m"], uncertainty: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, " m"]:
    weights = np.array([fitted.entropy, fitted.surprisal])
    decisions: Float[np.ndarray, " m"] = (
        fitted.probe * probe + uncertainty @ weights + fitted.intercept
    )
    return decisions
