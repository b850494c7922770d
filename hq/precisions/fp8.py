"""fp8: float8_e4m3fn weights, with one scale per tensor, row or block."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hq.precisions.block_float import BlockFloat, BlockScheme, compressed_scheme, unreadable
from hq.precisions.packed_checkpoints.checkpoint import COMPRESSED, compressed_weights

_FINE_GRAINED = "fp8"  # the method of DeepSeek-V3 and Qwen3-FP8, which transformers writes
_FORMATS = ("float-quantized", "naive-quantized")
_BLOCKS: dict[str, tuple[int | None, int | None]] = {"tensor": (None, None), "channel": (1, None)}
_FLOATS = ("F32", "BF16", "F16")


class FP8(BlockFloat):
    """Weights of 8 bits with 4 bits of exponent; made with one float32 scale per row."""

    name = "fp8"
    settings: Mapping[str, object] = {"scales": "row"}
    storage = "float8_e4m3fn"
    code_bits = 8
    scale_bits = 32
    made = BlockScheme("weight", "weight_scale", (1, None))
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "weight": ("F8_E4M3",),
        "weight_scale": _FLOATS,
        "weight_scale_inv": (*_FLOATS, "F8_E8M0"),
    }

    def reads(self, quantization: Mapping[str, Any]) -> bool:
        """Whether it is fine-grained FP8, or FP8 of compressed-tensors."""
        method = str(quantization.get("quant_method")).lower()
        weights = compressed_weights(quantization)
        return method == _FINE_GRAINED or (
            method == COMPRESSED
            and weights["format"] in _FORMATS
            and (weights.get("type"), weights.get("num_bits")) == ("float", 8)
            and weights.get("strategy") in (*_BLOCKS, "block")
        )

    def scheme(self, path: Path, quantization: Mapping[str, Any]) -> BlockScheme:
        """The blocks that its config states. Raises HQError for static scales of activations."""
        if str(quantization.get("quant_method")).lower() == _FINE_GRAINED:
            if quantization.get("activation_scheme", "dynamic") != "dynamic":
                raise unreadable(path, "quantizes activations with static scales")
            block = _block(path, "weight_block_size", quantization.get("weight_block_size"))
            return BlockScheme("weight", "weight_scale_inv", block, activations=True)
        weights = compressed_weights(quantization)
        stated = weights.get("block_structure", 0)
        block = _BLOCKS.get(weights["strategy"]) or _block(path, "block_structure", stated)
        scheme = BlockScheme("weight", "weight_scale", block)
        return compressed_scheme(path, quantization, _FORMATS, scheme)

    def rounded(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """Scales are the largest weight of a row divided by 448, the largest float8_e4m3fn."""
        largest = weight.abs().amax(1, keepdim=True)
        scales = largest / torch.finfo(torch.float8_e4m3fn).max
        scales = torch.where(scales > 0, scales, 1)  # a row of zeros
        return (weight / scales).to(torch.float8_e4m3fn).float() * scales


def _block(path: Path, key: str, stated: object) -> tuple[int | None, int | None]:
    """The size of a block; None is one block. Raises HQError for anything but two numbers."""
    if stated is None:
        return None, None
    sizes = stated if isinstance(stated, (list, tuple)) else ()
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise unreadable(path, f"has {key} = {stated!r}")
    return sizes[0], sizes[1]
