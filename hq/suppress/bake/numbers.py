"""Numbers in the formats that files store scales in: read, rounded, and scaled exactly or not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from hq.registry import Registry

_DOUBLE = 53  # bits of a float64's significand
_TRIED = 1 << 11  # odd parts of α that are tried


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format; all its numbers are float64's too."""

    name: str
    dtype: str  # NumPy's, of the bytes as they lie in a file
    bits: int  # of a significand, the leading one counted
    least: int  # the smallest number above zero is 2 to this
    largest: float

    @property
    def nbytes(self) -> int:
        """Bytes of one number."""
        return np.dtype(self.dtype).itemsize

    def read(self, stored: UInt8[np.ndarray, "n nbytes"]) -> Float[np.ndarray, " n"]:
        """The numbers, float64."""
        raw = np.ascontiguousarray(stored).view(self.dtype).ravel()
        if self.name == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float64)

    def write(self, values: Float[np.ndarray, " n"]) -> UInt8[np.ndarray, "n nbytes"]:
        """Numbers that the format has, as it stores them."""
        if self.name == "BF16":
            raw = (values.astype(np.float32).view(np.uint32) >> 16).astype(self.dtype)
        else:
            raw = values.astype(self.dtype)
        return raw.view(np.uint8).reshape(-1, self.nbytes)

    def rounded(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The nearest numbers that it has, ties to even; infinite past the largest."""
        unit = self.unit(values)
        near: Float[np.ndarray, " n"] = np.rint(values / unit) * unit
        return np.where(np.abs(near) > self.largest, np.copysign(np.inf, near), near)

    def unit(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The distance of its numbers at each value."""
        exponent = np.maximum(np.frexp(values)[1] - self.bits, self.least)
        return np.ldexp(1.0, np.where(values == 0, self.least, exponent))


FORMATS: Registry[Format] = Registry("number format")
for _format in (
    Format("F16", "<f2", 11, -24, 65504.0),
    Format("BF16", "<u2", 8, -133, (2 - 2.0**-7) * 2.0**127),
    Format("F32", "<f4", 24, -149, (2 - 2.0**-23) * 2.0**127),
):
    FORMATS.add(_format.name, _format)


Numbers = tuple[Format, Float[np.ndarray, " n"]]


def largest_alpha(numbers: Sequence[Numbers]) -> float:
    """The α up to which no number overflows, rounded down to four digits; infinite for zeros."""
    limits = [
        form.largest / top for form, values in numbers if (top := float(np.abs(values).max())) > 0
    ]
    if not limits:
        return math.inf
    limit = min(limits)
    digit = 10.0 ** (math.floor(math.log10(limit)) - 3)
    return math.floor(limit / digit) * digit


def nearest_exact(alpha: float, numbers: Sequence[Numbers]) -> float:
    """The α nearest to this one that takes every number to one that its format has.

    A number is an odd integer times a power of two, and so is an α other than 0: their product has
    to fit the significand, not to go below the smallest number nor above the largest. Where some
    number uses every bit, as almost always, the odd part of α can only be 1.
    """
    odd, low, top = _constraints(numbers)
    if odd == 0:
        return alpha  # only zeros: whatever α
    candidates = [0.0, 1.0]
    for part in range(1, min(odd, _TRIED) + 1, 2):
        wanted = math.log2(alpha / part) if alpha > 0 else low
        for power in (math.floor(wanted), math.ceil(wanted)):
            high = math.floor(math.log2(top / part))
            if low <= high:
                candidates.append(math.ldexp(part, min(max(power, low), high)))
    return min(candidates, key=lambda candidate: abs(candidate - alpha))


def _constraints(numbers: Sequence[Numbers]) -> tuple[int, int, float]:
    """The largest odd part of an exact α, its least power of two, and the largest α."""
    odd, low, top = [0], [-1 << 30], [math.inf]
    for form, values in numbers:
        some = np.abs(values[values != 0])
        if some.size:
            fraction, exponent = np.frexp(some)
            whole = np.ldexp(fraction, _DOUBLE).astype(np.int64)
            lowest = whole & -whole
            powers = exponent - _DOUBLE + np.log2(lowest).astype(np.int64)
            odd.append(((1 << form.bits) - 1) // int((whole // lowest).max()))
            low.append(form.least - int(powers.min()))
            top.append(form.largest / float(some.max()))
    return (min(odd[1:]) if odd[1:] else 0), max(low), min(top)
