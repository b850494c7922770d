"""Fidelity: how far a precision changes the contributions of neurons.

A measure has one value per neuron, from the reference's contributions `a` and the variant's `b`,
[n, k]: n questions, k neurons. The value of a group is the mean over its neurons with a value.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from hq.errors import HQError
from hq.neurons.space import NeuronSpace
from hq.stats.intervals import Estimate, Weights, estimate

FidelityMeasure = Callable[[Weights], Float[np.ndarray, "weightings k"]]
"""Values of neurons from the weights of the questions; NaN if a neuron has no value."""

# A variance below this share of the mean square is a rounding error of zero.
_ROUNDING = 1e-12


def correlation(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]) -> FidelityMeasure:
    """Pearson correlation over questions; undefined for a neuron that is constant in `a` or `b`."""
    # Centred first, so that the weighted moments below do not suffer from cancellation.
    x, y = (v.astype(np.float64) - v.mean(axis=0, dtype=np.float64) for v in (a, b))
    varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)

    def measure(weights: Weights) -> Float[np.ndarray, "weightings k"]:
        w = weights / weights.sum(axis=1, keepdims=True)
        mean_x, mean_y, square_x, square_y = w @ x, w @ y, w @ x**2, w @ y**2
        variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
        defined = varies & (variance_x > _ROUNDING * square_x) & (variance_y > _ROUNDING * square_y)
        return _ratio(
            w @ (x * y) - mean_x * mean_y, np.sqrt(variance_x.clip(0) * variance_y.clip(0)), defined
        )

    return measure


def relative_error(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]) -> FidelityMeasure:
    """Σ|b − a| ÷ Σ|a| over questions; undefined for a neuron whose contributions `a` are all 0."""
    reference = np.abs(a.astype(np.float64))
    change = np.abs(b.astype(np.float64) - a)

    def measure(weights: Weights) -> Float[np.ndarray, "weightings k"]:
        total = weights @ reference
        return _ratio(weights @ change, total, total > 0)

    return measure


def rank_change(
    a: Float[np.ndarray, "n p"],
    b: Float[np.ndarray, "n p"],
    chosen: Int[np.ndarray, " k"],
    space: NeuronSpace,
) -> FidelityMeasure:
    """Mean |change of rank| of each chosen neuron within its block, as a share of its width.

    `a` and `b` hold all neurons of the space, and `chosen` flat indices.
    """
    changes = np.empty((len(a), len(chosen)))
    blocks, indices = space.block_of(chosen), space.locate(chosen).within
    for block in np.unique(blocks):
        columns, here = space.slices[block], blocks == block
        before, after = (_ranks(v[:, columns], indices[here]) for v in (a, b))
        changes[:, here] = np.abs(before - after)
    width = np.array(space.widths)[blocks]

    def measure(weights: Weights) -> Float[np.ndarray, "weightings k"]:
        total = width * weights.sum(axis=1, keepdims=True)
        share: Float[np.ndarray, "weightings k"] = weights @ changes / total
        return share

    return measure


def of_columns(measure: FidelityMeasure, columns: Int[np.ndarray, " k"]) -> FidelityMeasure:
    """Return the measure of some of its neurons."""
    return lambda weights: measure(weights)[:, columns]


def over_questions(
    measure: FidelityMeasure,
    n: int,
    name: str,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Estimate:
    """Return a group's value with its jackknife interval over questions, or groups of questions.

    Raises HQError with the measure's `name` if no neuron of the group has a value.
    """
    return estimate(lambda w: _mean(measure(w)), n, groups, name)


def over_draws(
    measure: FidelityMeasure, n: int, name: str, draws: Int[np.ndarray, "draws k"]
) -> Estimate:
    """Return the mean over draws of neurons, with the interval that contains 95% of the draws.

    `draws` has indices of the measure's neurons. Raises HQError with the measure's `name` if no
    neuron of a draw has a value.
    """
    values = _mean(measure(np.ones((1, n)))[0][draws])
    if np.isnan(values).any():
        raise HQError(f"The {name} is undefined for a draw of neurons: draw others, or more.")
    return Estimate.of_draws(values)


def _ratio(
    numerator: Float[np.ndarray, "*shape"],
    denominator: Float[np.ndarray, "*shape"],
    defined: Bool[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """Numerator ÷ denominator where `defined`, NaN elsewhere."""
    ratio: Float[np.ndarray, "*shape"] = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=defined)
    return ratio


def _mean(values: Float[np.ndarray, "rows k"]) -> Float[np.ndarray, " rows"]:
    """Mean of each row's defined values; NaN if a row has none."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    return _ratio(np.where(defined, values, 0).sum(axis=1), count, count > 0)


def _ranks(
    values: Float[np.ndarray, "n d_ff"], chosen: Int[np.ndarray, " k"]
) -> Int[np.ndarray, "n k"]:
    """Rank of the chosen columns in each row; equal values are ranked by index."""
    ascending = np.sort(values, axis=1)  # several times faster than argsort
    wanted = values[:, chosen]
    ranks = np.empty(wanted.shape, dtype=np.int64)
    ends = np.empty(wanted.shape, dtype=np.int64)
    for row, of_row in enumerate(ascending):
        ranks[row] = np.searchsorted(of_row, wanted[row])
        ends[row] = np.searchsorted(of_row, wanted[row], side="right")
    for row, column in np.argwhere(ends - ranks > 1):
        equal = values[row, : chosen[column]] == wanted[row, column]
        ranks[row, column] += int(equal.sum())
    return ranks
