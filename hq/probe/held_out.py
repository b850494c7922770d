"""Statistics of neurons on samples that did not select them.

A neuron that a fit selected separates the samples of that fit better than other samples. In a
cross-fit, the neurons of a fold's probe were selected without the samples of the fold.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from hq.errors import HQError
from hq.probe.cross_fit import CrossFit
from hq.stats.intervals import Statistic, Weights

OnRows = Callable[[int, Int[np.ndarray, " m"]], Statistic]


def require_selections(probes: CrossFit) -> None:
    """Raises HQError if the set, or the probe of a fold, has no neuron with a positive weight."""
    fits = {"the set of all samples": probes.neurons}
    fits |= {f"the probe of fold {fold}": p.probe for fold, p in enumerate(probes.folds)}
    for name, fit in fits.items():
        if not fit.positive:
            raise HQError(
                f"In {name} no neuron has a positive weight, so there is no H-Neuron to evaluate: "
                "use a study with more samples."
            )


def mean_over_folds(
    chosen: Sequence[Int[np.ndarray, " k"]],
    rows: Sequence[Int[np.ndarray, " m"]],
    of_neuron: OnRows,
) -> Statistic:
    """Return the mean of a statistic over the neurons of all folds.

    Args:
        chosen: Neurons of the probe of each fold, from fold 0.
        rows: Rows on which those neurons are evaluated: of the fold for held-out samples, or
            outside of it for the samples that selected them.
        of_neuron: Returns the statistic of a neuron on some rows, as a function of their weights.
    """
    parts = [
        (of_fold, of_neuron(int(neuron), of_fold))
        for neurons, of_fold in zip(chosen, rows, strict=True)
        for neuron in neurons
    ]

    def mean(weights: Weights) -> Float[np.ndarray, " weightings"]:
        total = sum(statistic(weights[:, of_fold]) for of_fold, statistic in parts)
        return np.asarray(total, dtype=np.float64) / len(parts)

    return mean
