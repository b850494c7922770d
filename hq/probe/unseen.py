"""Scores of responses that were not in a cross-fit, by fits that have seen nothing related to them.

A new response can be related to responses of several folds: one has the same answer, another the
same subject. The fit that scores it leaves out these folds.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit

Folds = frozenset[int]
MOST_FOLDS = 2
"""The largest number of folds that a fit of a `CrossFit` leaves out."""


def fit_without(probes: CrossFit, folds: Folds) -> NeuronSet:
    """Return the fit without these folds, at most `MOST_FOLDS`: the set for use without none."""
    if not folds:
        return probes.neurons
    first, *others = sorted(folds)
    of_fold = probes.folds[first]
    return of_fold.calibration[others[0]] if others else of_fold.probe


def unseen_scores(
    decisions: Callable[[Folds], Float[np.ndarray, " n"]], related: Sequence[Folds]
) -> Float[np.ndarray, " n"]:
    """Return a score for each response, by the fit without the folds that it is related to.

    The decision values of each fit are standardised over all responses, without labels, so that
    responses that are scored by different fits can be compared.

    Args:
        decisions: The decision values of all responses by the fit without some folds.
        related: For each response, the folds that hold something related to it.
    """
    scores = np.empty(len(related))
    for folds in dict.fromkeys(related):
        rows = [row for row, own in enumerate(related) if own == folds]
        values = decisions(folds).astype(np.float64)
        spread = values.std()
        scores[rows] = (values[rows] - values.mean()) / (spread if spread > 0 else 1.0)
    return scores
