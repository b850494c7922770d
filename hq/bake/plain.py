"""Dense weights: a row of W, or a column, is the numbers themselves."""

import numpy as np
from jaxtyping import Float

from hq.bake.scheme import SCHEMES, Store, number_format
from hq.bake.strips import Strip
from hq.checkpoint import StoredTensor


class Plain:
    """A weight as plain numbers; some families store it transposed, [d_in, d_out]."""

    def strip(self, store: Store, projection: str, row: int) -> Strip:
        """The row itself."""
        return line(store.tensors[f"{projection}.weight"], row, store.transposed)

    def row(
        self, store: Store, projection: str, row: int, numbers: Float[np.ndarray, " d_in"]
    ) -> Float[np.ndarray, " d_in"]:
        """The numbers."""
        return numbers


def line(tensor: StoredTensor, index: int, column: bool) -> Strip:
    """A row of a matrix, or a column."""
    form = number_format(tensor)
    rows, columns = tensor.shape
    size = (tensor.end - tensor.start) // (rows * columns)
    if column:
        return Strip(tensor.name, form, index * size, columns * size, rows)
    return Strip(tensor.name, form, index * columns * size, size, columns)


def number(vector: StoredTensor, index: int) -> Strip:
    """One number of a bias."""
    size = (vector.end - vector.start) // vector.shape[0]
    return Strip(vector.name, number_format(vector), index * size, size, 1)


SCHEMES.add("weight", Plain())
