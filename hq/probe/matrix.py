"""Standardised features, in memory or computed block by block from traces on disk.

A fit reads all columns in passes, and a few hundred columns completely. Of traces that are larger
than memory, a pass standardises blocks of columns as it reads them, so memory holds one block. Both
kinds have the same float32 values.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from hq.errors import HQError
from hq.neurons.features import Standardised, standardise, standardise_block, where_not_finite
from hq.neurons.space import NeuronSpace

IN_MEMORY = 4 * 2**30
"""Standardised features of more bytes are computed from the traces in each pass."""

_WIDTH = 8192  # columns at a time: 32 kB of each row, so that a disk reads long pieces
_NARROW = 512  # of arrays that are stored column after column, so that a block stays in the cache


class Matrix(Protocol):
    """Standardised features [n, p], float32: mean 0 and variance 1 in each column, or zeros."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p)."""
        ...

    def blocks(self, width: int | None = None) -> Iterator[tuple[slice, Float[np.ndarray, "n b"]]]:
        """Yield all columns in order, in blocks of `width`, or of the matrix's own width."""
        ...

    def take(
        self, rows: Int[np.ndarray, " m"], columns: Int[np.ndarray, " k"]
    ) -> Float[np.ndarray, "m k"]:
        """Return these rows of these columns."""
        ...


class InMemory:
    """A standardised array, copied unless it is float32 in Fortran order."""

    def __init__(self, Z: Float[np.ndarray, "n p"]) -> None:
        self._Z = np.asfortranarray(Z, dtype=np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p)."""
        n, p = self._Z.shape
        return n, p

    def blocks(self, width: int | None = None) -> Iterator[tuple[slice, Float[np.ndarray, "n b"]]]:
        """Yield the columns in blocks of `width`, or all at once."""
        for columns in _slices(self.shape[1], width or self.shape[1]):
            yield columns, self._Z[:, columns]

    def take(
        self, rows: Int[np.ndarray, " m"], columns: Int[np.ndarray, " k"]
    ) -> Float[np.ndarray, "m k"]:
        """Return these rows of these columns."""
        taken: Float[np.ndarray, "m k"] = self._Z[np.ix_(rows, columns)]
        return taken


class Streamed:
    """Features that are standardised whenever they are read, from arrays that memory maps.

    The rows of the arrays follow each other. One pass computes the moments. Raises HQError if the
    arrays are empty or hold NaN or infinite values; with a `space`, it names the neuron.
    """

    def __init__(
        self, arrays: Sequence[Float[np.ndarray, "n p"]], space: NeuronSpace | None = None
    ) -> None:
        self._arrays = tuple(arrays)
        by_column = all(array.flags.f_contiguous for array in self._arrays)
        self._width = _NARROW if by_column else _WIDTH
        self._ends = np.cumsum([len(array) for array in self._arrays])
        n, p = self.shape
        if not n * p:
            raise HQError(
                f"The feature matrix is empty (shape {(n, p)}): trace some responses first."
            )
        self._mean, self._scale = np.empty(p), np.empty(p)
        self._constant = np.zeros(p, dtype=bool)
        for columns in _slices(p, self._width):
            block = self._raw(columns)
            self._mean[columns], self._scale[columns], self._constant[columns] = standardise_block(
                block
            )
            if not np.isfinite(self._mean[columns]).all():
                raise HQError(where_not_finite(self._raw(columns), space, columns.start))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, p)."""
        return int(self._ends[-1]), self._arrays[0].shape[1]

    @property
    def moments(self) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """The mean and the standard deviation of each column, float32; 1 if it is constant."""
        return self._mean.astype(np.float32), self._scale.astype(np.float32)

    def blocks(self, width: int | None = None) -> Iterator[tuple[slice, Float[np.ndarray, "n b"]]]:
        """Yield the columns in blocks of `width`, or of the width that suits a disk."""
        for columns in _slices(self.shape[1], width or self._width):
            yield columns, self._standardised(self._raw(columns), columns)

    def take(
        self, rows: Int[np.ndarray, " m"], columns: Int[np.ndarray, " k"]
    ) -> Float[np.ndarray, "m k"]:
        """Return these rows of these columns."""
        raw = np.empty((len(rows), len(columns)))
        for array, end in zip(self._arrays, self._ends.tolist(), strict=True):
            own = (rows >= end - len(array)) & (rows < end)
            raw[own] = array[np.ix_(rows[own] - (end - len(array)), columns)]
        return self._standardised(raw, columns)

    def _raw(self, columns: slice) -> Float[np.ndarray, "n b"]:
        return np.concatenate([array[:, columns] for array in self._arrays], dtype=np.float64)

    def _standardised(
        self, raw: Float[np.ndarray, "m k"], columns: "slice | Int[np.ndarray, ' k']"
    ) -> Float[np.ndarray, "m k"]:
        raw -= self._mean[columns]
        raw /= self._scale[columns]
        raw[:, self._constant[columns]] = 0.0
        return np.asfortranarray(raw, dtype=np.float32)


def standardised(
    arrays: Sequence[Float[np.ndarray, "n p"]], space: NeuronSpace
) -> tuple[Matrix, Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Return the features in arrays, whose rows follow each other, with means and deviations.

    In memory if they have at most `IN_MEMORY` bytes, else streamed. Raises HQError as `Streamed`.
    """
    n, p = sum(map(len, arrays)), arrays[0].shape[1]
    if 4 * n * p > IN_MEMORY:
        streamed = Streamed(arrays, space)
        return (streamed, *streamed.moments)
    if len(arrays) == 1:
        fitted: Standardised = standardise(arrays[0], space=space)
        return InMemory(fitted.Z), fitted.mean, fitted.scale
    streamed = Streamed(arrays, space)  # without a copy that holds the rows of all arrays
    Z = np.empty((n, p), dtype=np.float32, order="F")
    for columns, block in streamed.blocks(1024):
        Z[:, columns] = block
    return (InMemory(Z), *streamed.moments)


def _slices(p: int, width: int) -> Iterator[slice]:
    for start in range(0, p, width):
        yield slice(start, min(start + width, p))
