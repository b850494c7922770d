"""Feature matrices [n, p] with their measure, span and model, and their standardisation."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from hq.errors import HQError
from hq.neurons.cett import Measure, Span
from hq.neurons.factors import named
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.space import NeuronSpace

# Columns at a time: a float64 copy of a block of a few thousand rows stays in the cache.
_BLOCK = 256
# Relative deviation below which a column is constant: far above float64's rounding of the mean, and
# far below the deviation that one float32 step in one of a million rows makes.
_CONSTANT = 1e-13


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One measure of every neuron of a model over one span, one row per response.

    Column j of `values` [n, p] is the neuron with flat index j in `model.space`. Columns in
    `missing` belong to neurons that the traced variant lacks; they are zero, so that no fit selects
    them.
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
        """The features of some responses."""
        return replace(self, values=self.values[rows])


class Standardised(NamedTuple):
    """Features with mean 0 and variance 1 per column: `Z = (X − mean) / scale`."""

    Z: Float[np.ndarray, "n p"]  # float32, column after column in memory (Fortran order)
    mean: Float[np.ndarray, " p"]
    scale: Float[np.ndarray, " p"]


def standardise(
    X: Float[np.ndarray, "n p"],
    rows: Int[np.ndarray, " m"] | None = None,
    space: NeuronSpace | None = None,
) -> Standardised:
    """Standardise the columns of X, or of the chosen rows of X, in float32.

    Sums run in float64 (CETT values are about 1/d_ff, and a float32 sum of squares loses them).
    A constant column gets scale 1 and is zero everywhere, so that no fit can select it. With a
    `space`, error messages name the neuron of a column.

    Raises HQError if the matrix is empty or holds NaN or infinite values.
    """
    chosen = np.arange(len(X)) if rows is None else rows
    if chosen.size == 0 or X.shape[1] == 0:
        raise HQError(f"The feature matrix is empty (shape {X.shape}): trace some responses first.")
    n, p = len(chosen), X.shape[1]
    standardised = Standardised(
        Z=np.empty((n, p), dtype=np.float32, order="F"),
        mean=np.empty(p, dtype=np.float32),
        scale=np.empty(p, dtype=np.float32),
    )
    for start in range(0, p, _BLOCK):
        columns = slice(start, start + _BLOCK)
        block = X[chosen, columns].astype(np.float64)
        mean, scale, _ = standardise_block(block)
        standardised.Z[:, columns] = block
        standardised.mean[columns], standardised.scale[columns] = mean, scale
    if not np.isfinite(standardised.mean).all():
        raise HQError(where_not_finite(X, space))
    return standardised


def standardise_block(
    block: Float[np.ndarray, "n b"],
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"], Bool[np.ndarray, " b"]]:
    """Standardise float64 columns in place, and return their means, scales, and which are constant.

    The mean of a column with NaN or infinite values is not finite.
    """
    # inf − inf is NaN: the caller finds such columns by their mean.
    with np.errstate(invalid="ignore", over="ignore"):
        mean = block.mean(axis=0)
        block -= mean
        scale = np.sqrt(np.einsum("nb,nb->b", block, block) / len(block))
        constant = scale <= _CONSTANT * np.abs(mean)
        scale[constant] = 1.0
        block /= scale
    block[:, constant] = 0.0
    return mean, scale, constant


def where_not_finite(X: Float[np.ndarray, "n p"], space: NeuronSpace | None, start: int = 0) -> str:
    """Name the first value that is NaN or infinite in columns that begin at `start`."""
    bad = ~np.isfinite(X)
    row, column = np.unravel_index(int(bad.argmax()), X.shape)
    column += start
    column_name = f"column {column}"
    if space is not None:
        column_name = f"neuron {named(space.positions(column)[0])}"
    return (
        f"{int(bad.sum())} feature values are NaN or infinite, the first in row {row} at "
        f"{column_name}: trace these responses again in float32."
    )
