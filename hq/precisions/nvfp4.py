"""nvfp4: 4-bit floats in blocks of 16 inputs, with FP8 scales and one float32 scale per tensor."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hq.precisions.block_float import BlockScheme
from hq.precisions.e2m1 import E2M1, LARGEST

_LARGEST_SCALE = torch.finfo(torch.float8_e4m3fn).max
_SMALLEST_SCALE = 0.125  # in place of a scale that rounds to zero, as in compressed-tensors


class NVFP4(E2M1):
    """The scale of a block is its FP8 scale divided by the global scale of the tensor."""

    name = storage = "nvfp4"
    extra_bits = 32
    format = "nvfp4-pack-quantized"
    made = BlockScheme("weight_packed", "weight_scale", (1, 16), ("weight_global_scale",))
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "weight_packed": ("U8",),
        "weight_scale": ("F8_E4M3",),
        "weight_global_scale": ("F32",),
    }

    def scales(self, parts: Mapping[str, Tensor], scheme: BlockScheme) -> Float[Tensor, "..."]:
        """FP8 scales divided by the global scale."""
        return parts["weight_scale"].float() / parts["weight_global_scale"]

    def block_scales(
        self, largest: Float[Tensor, "d_out block 1"]
    ) -> Float[Tensor, "d_out block 1"]:
        """Scales that map the largest weight of a block to 6, and the largest scale to 448."""
        tiny = torch.finfo(torch.float32).tiny
        global_scale = _LARGEST_SCALE * LARGEST / largest.max().clamp(min=tiny)
        coded = (global_scale * (largest / LARGEST)).clamp(max=_LARGEST_SCALE)
        coded = coded.to(torch.float8_e4m3fn).float()
        return torch.where(coded > 0, coded, _SMALLEST_SCALE) / global_scale
