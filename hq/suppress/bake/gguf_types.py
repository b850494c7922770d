"""Where each GGUF type keeps the numbers that all weights of a block are proportional to.

A weight is a sum of such scales, each times something of its own (a code, a smaller scale): all of
them times α is the weight times α. A new type is one `add` line.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from hq.gguf.types import GGMLType, dequantized
from hq.registry import Registry
from hq.suppress.bake.model import NeuronWeights
from hq.suppress.bake.numbers import FORMATS


@dataclass(frozen=True, slots=True)
class BlockScales:
    """Their format, and how many bytes into a block each stands."""

    format: str
    offsets: tuple[int, ...]


SCALES: Registry[BlockScales] = Registry("GGUF type that can be baked")
for _name in ("F32", "F16", "BF16"):
    SCALES.add(_name, BlockScales(_name, (0,)))  # the weight itself
SCALES.add("Q4_0", BlockScales("F16", (0,)))
SCALES.add("Q4_1", BlockScales("F16", (0, 2)))  # with the block's minimum
SCALES.add("Q5_0", BlockScales("F16", (0,)))
SCALES.add("Q5_1", BlockScales("F16", (0, 2)))
SCALES.add("Q8_0", BlockScales("F16", (0,)))
SCALES.add("Q2_K", BlockScales("F16", (80, 82)))  # from here on, scales of the blocks' own scales
SCALES.add("Q3_K", BlockScales("F16", (108,)))
SCALES.add("Q4_K", BlockScales("F16", (0, 2)))
SCALES.add("Q5_K", BlockScales("F16", (0, 2)))
SCALES.add("Q6_K", BlockScales("F16", (208,)))
SCALES.add("IQ4_NL", BlockScales("F16", (0,)))


def block_weights(blocks: UInt8[np.ndarray, "block nbytes"], kind: GGMLType) -> NeuronWeights:
    """Dequantized by the package gguf: as they are, and by one scale at a time."""
    scales = SCALES[kind.name]
    form = FORMATS[scales.format]
    size = unit = np.zeros(len(blocks) * kind.weights)
    for offset in scales.offsets:
        numbers = form.read(blocks[:, offset : offset + form.nbytes])
        size = size + np.abs(_alone(blocks, kind, offset, numbers))
        unit = unit + np.abs(_alone(blocks, kind, offset, form.unit(numbers)))
    return NeuronWeights(_dense(blocks, kind), size, unit)


def _alone(
    blocks: UInt8[np.ndarray, "block nbytes"],
    kind: GGMLType,
    offset: int,
    numbers: Float[np.ndarray, " block"],
) -> Float[np.ndarray, " weight"]:
    """What the weights are with these numbers for one scale, and zero for all others."""
    scales, edited = SCALES[kind.name], blocks.copy()
    form = FORMATS[scales.format]
    for other in scales.offsets:
        edited[:, other : other + form.nbytes] = 0
    edited[:, offset : offset + form.nbytes] = form.write(numbers)
    return _dense(edited, kind)


def _dense(
    blocks: UInt8[np.ndarray, "block nbytes"], kind: GGMLType
) -> Float[np.ndarray, " weight"]:
    row: Float[np.ndarray, "1 weight"] = dequantized(blocks.reshape(1, -1), kind)
    return row.ravel().astype(np.float64)
