"""Dense weights: a row of W, or a column, is the numbers themselves."""

import numpy as np
from jaxtyping import Float

from hq.models.checkpoint import StoredTensor
from hq.suppress.bake.scheme import SCHEMES, StoredTensors, number_format
from hq.suppress.bake.strided_scales import StridedScales


class Plain:
    """A weight as plain numbers; some families store it transposed, [d_in, d_out]."""

    def strip(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The row itself."""
        return line(store.tensors[f"{projection}.weight"], row, store.transposed)

    def row(
        self, store: StoredTensors, projection: str, row: int, numbers: Float[np.ndarray, " d_in"]
    ) -> Float[np.ndarray, " d_in"]:
        """The numbers."""
        return numbers


def line(tensor: StoredTensor, index: int, column: bool) -> StridedScales:
    """A row of a matrix, or a column."""
    form = number_format(tensor)
    rows, columns = tensor.shape
    size = (tensor.end - tensor.start) // (rows * columns)
    if column:
        return StridedScales(tensor.name, form, index * size, columns * size, rows)
    return StridedScales(tensor.name, form, index * columns * size, size, columns)


def number(vector: StoredTensor, index: int) -> StridedScales:
    """One number of a bias."""
    size = (vector.end - vector.start) // vector.shape[0]
    return StridedScales(vector.name, number_format(vector), index * size, size, 1)


SCHEMES.add("weight", Plain())
