"""4-bit floats (E2M1: two bits of exponent, one of mantissa), the codes of nvfp4 and mxfp4."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hq.models.checkpoint import StoredTensor
from hq.precisions.block_float import BlockFloat, BlockScheme, compressed_scheme
from hq.precisions.packed_checkpoints.checkpoint import COMPRESSED, compressed_weights

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST = _VALUES[-1]


class E2M1(BlockFloat):
    """Base class: 4-bit floats in compressed-tensors checkpoints, two codes per byte."""

    code_bits = 4
    scale_bits = 8
    format: ClassVar[str]  # the name of the format in compressed-tensors

    def reads(self, quantization: Mapping[str, Any]) -> bool:
        """Whether it is this format of compressed-tensors."""
        method = str(quantization.get("quant_method")).lower()
        return method == COMPRESSED and compressed_weights(quantization)["format"] == self.format

    def scheme(self, path: Path, quantization: Mapping[str, Any]) -> BlockScheme:
        """The scheme of the format. Raises HQError for static scales of activations."""
        return compressed_scheme(path, quantization, (self.format,), self.made)

    def shape(self, codes: StoredTensor) -> tuple[int, ...]:
        """Two inputs per byte."""
        return (*codes.shape[:-1], 2 * codes.shape[-1])

    def values(self, codes: Tensor) -> Float[Tensor, "d_out d_in"]:
        """The number of each code, the first of a byte in its low bits."""
        pairs = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
        table = torch.tensor((*_VALUES, *(-value for value in _VALUES)), device=codes.device)
        return table[pairs]

    def rounded(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """Float32 weights, rounded to the nearest codes of their blocks and dequantized."""
        blocks = weight.view(len(weight), -1, self.made.block[1] or weight.shape[1])
        scales = self.block_scales(blocks.abs().amax(-1, keepdim=True))
        return (round_to_e2m1(blocks / scales) * scales).flatten(1)

    def block_scales(
        self, largest: Float[Tensor, "d_out block 1"]
    ) -> Float[Tensor, "d_out block 1"]:
        """The scale of each block with this largest magnitude of a weight."""
        raise NotImplementedError


def round_to_e2m1(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The nearest 4-bit float of each number, ties to the even code, at most ±6."""
    magnitude = values.abs().clamp(max=LARGEST)
    step = torch.exp2(magnitude.clamp(min=1).log2().floor() - 1)  # 0.5, 1 or 2
    return torch.copysign((magnitude / step).round() * step, values)
