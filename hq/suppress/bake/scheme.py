"""How a checkpoint stores a projection, and which of its numbers scale one row alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from hq.errors import HQError
from hq.models.checkpoint import StoredTensor
from hq.registry import Registry
from hq.suppress.bake.strided_scales import StridedScales


class StoredTensors(Protocol):
    """What a scheme sees of a checkpoint."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    transposed: bool  # dense weights are [d_in, d_out]

    def stored(self, tensor: str) -> UInt8[np.ndarray, " byte"]:
        """A tensor's bytes."""
        ...


class StorageScheme(Protocol):
    """One way to store a projection, [d_out, d_in], whose tensors begin with its name."""

    def strip(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The numbers that a row is proportional to. HQError where they scale other rows too."""
        ...

    def row(
        self, store: StoredTensors, projection: str, row: int, numbers: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " d_in"]:
        """The row's weights, if these were the strip's numbers."""
        ...


SCHEMES: Registry[StorageScheme] = Registry(
    "scheme"
)  # by the tensor that only such a projection has


def storage_scheme(store: StoredTensors, projection: str) -> StorageScheme:
    """The scheme of a projection. HQError for one that hq does not know."""
    for mark in sorted(SCHEMES, key="weight".__eq__):  # others may have a `weight` too
        if f"{projection}.{mark}" in store.tensors:
            return SCHEMES[mark]
    raise HQError(
        f"{store.path} lacks {projection}.weight: it is incomplete, or stored in a way that hq "
        "does not know."
    )


def number_format(tensor: StoredTensor) -> str:
    """The format of a tensor of plain numbers. HQError for any other."""
    if tensor.dtype not in ("F32", "F16", "BF16"):
        raise HQError(
            f"{tensor.file.parent} has {tensor.name} in {tensor.dtype}, into which α cannot be "
            "baked: save it in float32, float16 or bfloat16."
        )
    return tensor.dtype
