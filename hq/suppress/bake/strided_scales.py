"""Stored scales: their number formats, where they lie in a tensor, and the bytes that replace them.

Multiplying these numbers by α scales a neuron. Products are rounded to the format of the file.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from hq.registry import Registry

_FLOAT64_BITS = 53  # of the significand
_MAX_ODD_PART = 1 << 11  # largest odd part of α that `nearest_exact` tries


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """A binary floating-point format; float64 represents each of its numbers exactly."""

    name: str
    dtype: str  # NumPy's type of the stored bytes
    bits: int  # of the significand, including the leading one
    min_exponent: int  # the smallest positive number is 2 to the power of this
    largest: float

    @property
    def nbytes(self) -> int:
        """Bytes of one number."""
        return np.dtype(self.dtype).itemsize

    def read(self, stored: UInt8[np.ndarray, "n nbytes"]) -> Float[np.ndarray, " n"]:
        """Stored numbers as float64."""
        raw = np.ascontiguousarray(stored).view(self.dtype).ravel()
        if self.name == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float64)

    def write(self, values: Float[np.ndarray, " n"]) -> UInt8[np.ndarray, "n nbytes"]:
        """The stored bytes of values that the format represents exactly."""
        if self.name == "BF16":
            raw = (values.astype(np.float32).view(np.uint32) >> 16).astype(self.dtype)
        else:
            raw = values.astype(self.dtype)
        return raw.view(np.uint8).reshape(-1, self.nbytes)

    def rounded(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Values rounded to the format, ties to even; infinite beyond the largest number."""
        ulp = self.ulp(values)
        nearest: Float[np.ndarray, " n"] = np.rint(values / ulp) * ulp
        return np.where(np.abs(nearest) > self.largest, np.copysign(np.inf, nearest), nearest)

    def ulp(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Unit in the last place: the distance between neighbouring numbers at each value."""
        exponent = np.maximum(np.frexp(values)[1] - self.bits, self.min_exponent)
        return np.ldexp(1.0, np.where(values == 0, self.min_exponent, exponent))


FORMATS: Registry[NumberFormat] = Registry("number format")
for _format in (
    NumberFormat("F16", "<f2", 11, -24, 65504.0),
    NumberFormat("BF16", "<u2", 8, -133, (2 - 2.0**-7) * 2.0**127),
    NumberFormat("F32", "<f4", 24, -149, (2 - 2.0**-23) * 2.0**127),
):
    FORMATS.add(_format.name, _format)


@dataclass(frozen=True, slots=True)
class StridedScales:
    """Scales of one format at equal distances in a tensor; offsets are bytes from its start."""

    tensor: str
    format: str
    start: int
    stride: int
    count: int

    @property
    def number_format(self) -> NumberFormat:
        """The format of the scales."""
        return FORMATS[self.format]

    @property
    def end(self) -> int:
        """Offset after the last scale."""
        return self.start + (self.count - 1) * self.stride + self.number_format.nbytes

    def bytes_in(self, stored: UInt8[np.ndarray, " byte"]) -> UInt8[np.ndarray, "n nbytes"]:
        """A writable view of the scales in the bytes of their tensor."""
        assert self.start >= 0
        assert self.stride >= 0
        assert self.end <= len(stored)
        shape, strides = (self.count, self.number_format.nbytes), (self.stride, 1)
        return np.lib.stride_tricks.as_strided(stored[self.start :], shape, strides)

    def read(self, stored: UInt8[np.ndarray, " byte"]) -> Float[np.ndarray, " n"]:
        """The scales in the bytes of their tensor, as float64."""
        return self.number_format.read(self.bytes_in(stored))


@dataclass(frozen=True, slots=True)
class Patch:
    """New bytes for scales."""

    scales: StridedScales
    content: UInt8[np.ndarray, "n nbytes"]


def apply_patches(path: Path, patches: Iterable[tuple[int, Patch]]) -> None:
    """Write each patch into the tensor that begins at the given byte of a file, and sync it."""
    with open(path, "r+b") as file:
        written = np.memmap(file, np.uint8, "r+")
        for start, patch in patches:
            patch.scales.bytes_in(written[start:])[:] = patch.content
        written.flush()
        os.fsync(file.fileno())


StoredNumbers = tuple[NumberFormat, Float[np.ndarray, " n"]]
"""Numbers, and the format in which a file stores them."""


def largest_alpha(stored: Sequence[StoredNumbers]) -> float:
    """The largest α for which no number overflows, rounded down to four digits."""
    limits = [
        number_format.largest / peak
        for number_format, numbers in stored
        if (peak := float(np.abs(numbers).max())) > 0
    ]
    if not limits:
        return math.inf
    limit = min(limits)
    digit = 10.0 ** (math.floor(math.log10(limit)) - 3)
    return math.floor(limit / digit) * digit


def nearest_exact(alpha: float, stored: Sequence[StoredNumbers]) -> float:
    """The α nearest to this one for which no product with a number has to be rounded.

    A number is an odd integer times a power of two, and so is each α other than 0. Their product
    must fit the significand, and lie between the smallest and the largest number. If some number
    uses every bit, as is almost always so, the odd part of α can only be 1.
    """
    max_odd, min_power, max_alpha = _exact_limits(stored)
    if max_odd == 0:
        return alpha  # all numbers are zero, so each α is exact
    candidates = [0.0, 1.0]
    for odd in range(1, min(max_odd, _MAX_ODD_PART) + 1, 2):
        power = math.log2(alpha / odd) if alpha > 0 else min_power
        for rounded in (math.floor(power), math.ceil(power)):
            max_power = math.floor(math.log2(max_alpha / odd))
            if min_power <= max_power:
                candidates.append(math.ldexp(odd, min(max(rounded, min_power), max_power)))
    return min(candidates, key=lambda candidate: abs(candidate - alpha))


def _exact_limits(stored: Sequence[StoredNumbers]) -> tuple[int, int, float]:
    """(largest odd part, smallest power of two, largest value) of an exact α."""
    odd_parts, powers, alphas = [], [-1 << 30], [math.inf]
    for number_format, numbers in stored:
        magnitudes = np.abs(numbers[numbers != 0])
        if magnitudes.size:
            fraction, exponent = np.frexp(magnitudes)
            significand = np.ldexp(fraction, _FLOAT64_BITS).astype(np.int64)
            lowest_bit = significand & -significand
            exponents = exponent - _FLOAT64_BITS + np.log2(lowest_bit).astype(np.int64)
            largest_significand = int((significand // lowest_bit).max())
            odd_parts.append(((1 << number_format.bits) - 1) // largest_significand)
            powers.append(number_format.min_exponent - int(exponents.min()))
            alphas.append(number_format.largest / float(magnitudes.max()))
    return min(odd_parts, default=0), max(powers), min(alphas)
