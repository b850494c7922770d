"""Combinations of scores by a second fit (stacking, Wolpert 1992), cross-fitted in the same folds.

Whether a score adds to another is a question about nested models: the other one alone, and both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hq.probe.controls import ridge_probe


@dataclass(frozen=True)
class CrossFittedScores:
    """Decision values of a detector that does not see the label of what it scores."""

    out_of_fold: Float[np.ndarray, " n"]  # by the fit without the row's fold
    calibration: Float[np.ndarray, "fold n"]  # row f: by fits without f and the row's fold


def stacked(
    features: Sequence[Float[np.ndarray, "n q"]],
    y: Int[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Return out-of-fold decision values (log odds) of a ridge logistic regression.

    Args:
        features: The features of all rows for each fold f, none of which depends on labels of f.
        y: Labels, 1 for a hallucinated response.
        folds: The fold of each row.
    """
    decisions = np.empty(len(y))
    for fold, of_fold in enumerate(features):
        test = folds == fold
        fitted = ridge_probe(of_fold[~test], y[~test])
        decisions[test] = fitted.decision_function(of_fold[test].astype(np.float64))
    return decisions


def for_folds(
    out_of_fold: Float[np.ndarray, " n"], calibration: Float[np.ndarray, "fold n"]
) -> list[Float[np.ndarray, "n 1"]]:
    """Return a cross-fitted score as the features of `stacked`.

    Args:
        out_of_fold: The score of each row by the fit of its fold.
        calibration: For each fold f, the scores of rows outside of f by fits that saw neither f nor
            the row's fold; NaN in f.
    """
    return [np.where(np.isnan(of_fold), out_of_fold, of_fold)[:, None] for of_fold in calibration]


def log_losses(
    decisions: Float[np.ndarray, " n"], y: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return −log of the probability of each label, for log odds, in nats."""
    losses: Float[np.ndarray, " n"] = np.logaddexp(0, decisions) - y * decisions
    return losses
