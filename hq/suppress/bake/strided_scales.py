"""Where in a file the numbers lie that scale a neuron, and what is put in their place."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from hq.suppress.bake.numbers import FORMATS, Format


@dataclass(frozen=True, slots=True)
class StridedScales:
    """Numbers of one format at equal distances in one tensor; places are bytes from its start."""

    tensor: str
    format: str
    start: int
    step: int
    count: int

    @property
    def form(self) -> Format:
        """The numbers' format."""
        return FORMATS[self.format]

    @property
    def end(self) -> int:
        """Where the last number ends."""
        return self.start + (self.count - 1) * self.step + self.form.nbytes

    def bytes_in(self, stored: UInt8[np.ndarray, " byte"]) -> UInt8[np.ndarray, "n nbytes"]:
        """A view of the numbers among the bytes of their tensor; it can be assigned to."""
        assert self.start >= 0
        assert self.step >= 0
        assert self.end <= len(stored)
        shape, strides = (self.count, self.form.nbytes), (self.step, 1)
        return np.lib.stride_tricks.as_strided(stored[self.start :], shape, strides)

    def read(self, stored: UInt8[np.ndarray, " byte"]) -> Float[np.ndarray, " n"]:
        """The numbers, float64."""
        return self.form.read(self.bytes_in(stored))


@dataclass(frozen=True, slots=True)
class Patch:
    """What is put in the place of a strip's numbers."""

    strip: StridedScales
    content: UInt8[np.ndarray, "n nbytes"]
