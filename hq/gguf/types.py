"""GGML's tensor types: blocks with a fixed number of weights and of bytes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from hq.errors import HQError


@dataclass(frozen=True, slots=True)
class GGMLType:
    """One tensor type."""

    number: int  # in a file
    name: str
    weights: int  # per block
    nbytes: int  # per block

    @property
    def is_weight_type(self) -> bool:
        """Whether weights are stored in it, unlike the types of indices and of activations."""
        return self.name not in _OTHER_TYPES

    @property
    def activations(self) -> str:
        """The type that llama.cpp's CPU kernels round activations to before they multiply."""
        return _FLOATS.get(self.name, "int8")


_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OTHER_TYPES = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}

TYPES: dict[int, GGMLType] = {
    number: GGMLType(number, name, weights, nbytes)
    for number, name, weights, nbytes in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}


def dequantized(
    rows: UInt8[np.ndarray, "row nbytes"], kind: GGMLType
) -> Float[np.ndarray, "row weight"]:
    """Dequantize rows of blocks to float32 with the package gguf.

    Raises HQError if the package is not installed, or does not know the type.
    """
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise HQError("GGUF weights need the package gguf: pip install 'hq[embedded]'.") from error
    try:
        with np.errstate(all="ignore"):  # callers check for weights that are not finite
            weights: Float[np.ndarray, "row weight"] = dequantize(
                rows, GGMLQuantizationType(kind.number)
            )
    except (NotImplementedError, ValueError) as error:
        raise HQError(
            f"The installed package gguf does not read {kind.name}: upgrade it, or quantize the "
            "model to another type."
        ) from error
    return weights
