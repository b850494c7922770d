"""mxfp4: 4-bit floats in blocks of 32 inputs, with scales that are powers of two (OCP MX)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hq.precisions.block_float import BlockScheme
from hq.precisions.e2m1 import E2M1

_BIAS, _NAN = 127, 255


class MXFP4(E2M1):
    """The scale of a block is a power of two, stored as its exponent (E8M0)."""

    name = storage = "mxfp4"
    format = "mxfp4-pack-quantized"
    made = BlockScheme("weight_packed", "weight_scale", (1, 32))
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "weight_packed": ("U8",),
        "weight_scale": ("U8",),
    }

    def scales(self, parts: Mapping[str, Tensor], scheme: BlockScheme) -> Float[Tensor, "..."]:
        """2^(e − 127) of each exponent e; 255 is NaN."""
        exponents = parts["weight_scale"]
        return torch.exp2(exponents.float() - _BIAS).masked_fill(exponents == _NAN, torch.nan)

    def block_scales(
        self, largest: Float[Tensor, "d_out block 1"]
    ) -> Float[Tensor, "d_out block 1"]:
        """Scales that map the largest weight of a block to at least 3.5 and less than 7.

        Above 6, it is rounded to 6. compressed-tensors chooses the same scales.
        """
        exponents = torch.frexp(largest / 1.75).exponent - 2
        return torch.exp2(exponents.clamp(-_BIAS, _BIAS).float())
