"""Feature matrices [n, p]: what their numbers are, and their standardisation for the solver."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hq.errors import HQError
from hq.neurons.cett import Measure, Span
from hq.neurons.neuron_set import ModelIdentity

# Columns at a time: a float64 copy of a block of a few thousand rows stays in the cache.
_BLOCK = 256
# Relative deviation below which a column is constant: far over float64's rounding of the mean, and
# far under what one float32 step in one of a million rows makes.
_CONSTANT = 1e-13


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One measure of every neuron of a model over one span, one row per response.

    `values` has p = layers · d_ff columns, layer after layer. Columns in `missing` are of neurons
    that the traced variant lacks; they are zero, so that no fit selects them.
    """

    values: Float[np.ndarray, "n p"]
    measure: Measure
    span: Span
    model: ModelIdentity
    precision: str
    missing: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != self.model.n_neurons:
            raise HQError(
                f"The features have shape {self.values.shape}, but {self.model.name} has "
                f"{self.model.n_neurons} neurons: trace that model."
            )

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Int[np.ndarray, " m"]) -> "Features":
        """Those of some responses."""
        return replace(self, values=self.values[rows])


class Standardised(NamedTuple):
    """Features with mean 0 and variance 1 per column: `Z = (X − mean) / scale`."""

    Z: Float[np.ndarray, "n p"]  # float32, column after column in memory (Fortran order)
    mean: Float[np.ndarray, " p"]
    scale: Float[np.ndarray, " p"]


def standardise(
    X: Float[np.ndarray, "n p"], rows: Int[np.ndarray, " m"] | None = None, d_ff: int | None = None
) -> Standardised:
    """Standardise the columns of X, or of the chosen rows of X, in float32.

    Sums run in float64 (CETT values are about 1/d_ff, and a float32 sum of squares loses them).
    A constant column gets scale 1 and is zero everywhere, so that no fit can select it.
    HQError for an empty matrix, and for NaN or infinite values: how many, and where the first is.
    """
    chosen = np.arange(len(X)) if rows is None else rows
    if chosen.size == 0 or X.shape[1] == 0:
        raise HQError(f"The feature matrix is empty (shape {X.shape}): trace some responses first.")
    n, p = len(chosen), X.shape[1]
    whole = Standardised(
        Z=np.empty((n, p), dtype=np.float32, order="F"),
        mean=np.empty(p, dtype=np.float32),
        scale=np.empty(p, dtype=np.float32),
    )
    for start in range(0, p, _BLOCK):
        columns = slice(start, start + _BLOCK)
        _standardise_block(X[chosen, columns].astype(np.float64), columns, whole)
    if not np.isfinite(whole.mean).all():
        raise HQError(_where_not_finite(X, d_ff))
    return whole


def _standardise_block(
    block: Float[np.ndarray, "n b"], columns: slice, whole: Standardised
) -> None:
    """Fill `whole` at `columns` from their raw values, in place in `block`."""
    # inf − inf is NaN: such columns are found by their mean, and refused with a sentence.
    with np.errstate(invalid="ignore", over="ignore"):
        mean = block.mean(axis=0)
        block -= mean
        scale = np.sqrt(np.einsum("nb,nb->b", block, block) / len(block))
        constant = scale <= _CONSTANT * np.abs(mean)
        scale[constant] = 1.0
        block /= scale
    block[:, constant] = 0.0
    whole.Z[:, columns], whole.mean[columns], whole.scale[columns] = block, mean, scale


def _where_not_finite(X: Float[np.ndarray, "n p"], d_ff: int | None) -> str:
    bad = ~np.isfinite(X)
    row, column = np.unravel_index(int(bad.argmax()), X.shape)
    place = f"column {column}" if d_ff is None else "neuron ({}, {})".format(*divmod(column, d_ff))
    return (
        f"{int(bad.sum())} feature values are NaN or infinite, the first in row {row} at {place}: "
        "trace these responses again in float32."
    )
