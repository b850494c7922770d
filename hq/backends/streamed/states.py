"""Hidden states of all texts between two layers, in memory-mapped files.

The operating system keeps the files in free memory and writes them when it needs that memory.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class States:
    """The states before a layer in one file, and those after it in another, in turn.

    A killed run can so repeat the layer that it was in.
    """

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        self._shapes = shapes
        self._ends = np.cumsum([prod(shape) for shape in shapes]).tolist()
        self._files = [
            torch.from_file(
                str(folder / f"states-{turn}.bin"), shared=True, size=self._ends[-1], dtype=dtype
            )
            for turn in (0, 1)
        ]

    def read(self, layer: int, number: int) -> Tensor:
        """The states of batch `number` before a layer."""
        return self._view(layer, number)

    def write(self, layer: int, number: int, states: Tensor) -> None:
        """Store the states of batch `number` before a layer."""
        self._view(layer, number).copy_(states)

    def _view(self, layer: int, number: int) -> Tensor:
        shape = self._shapes[number]
        end = self._ends[number]
        return self._files[layer % 2][end - prod(shape) : end].view(shape)
