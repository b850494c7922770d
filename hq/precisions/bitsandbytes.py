"""int8 (LLM.int8()), nf4 and fp4 through bitsandbytes, on CPU and CUDA."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from hq.errors import HQError
from hq.precisions.base import PRECISIONS, compute_dtype, from_pretrained


class Int8:
    """LLM.int8(): rows of the weight in 8 bits, activations in 8 bits but for outlier columns."""

    name = "int8"

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """Quantizes while loading."""
        _require_bitsandbytes(self.name)
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
        return from_pretrained(
            path,
            device,
            dtype=compute_dtype(device),
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        )

    def holds(self, module: nn.Module) -> bool:
        """8-bit integers in bitsandbytes' own linear."""
        from bitsandbytes.nn import Linear8bitLt

        return isinstance(module, Linear8bitLt) and module.weight.dtype == torch.int8

    def dense(self, module: nn.Module) -> Tensor:
        """Row r of W is SCB[r] / 127 times its integers."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.float() * (_row_scales(module).float() / 127)[:, None]

    def scale_bytes(self, module: nn.Module) -> int:
        """One float32 a row."""
        scales = _row_scales(module)
        return scales.nbytes


class FourBit:
    """nf4 or fp4: blocks of 64 weights, 4-bit codes, one float32 scale a block.

    Products are of the dequantized weight, in the compute type. Left to itself, bitsandbytes would
    repack weights at the first forward on a CPU with AVX512-BF16, round scales and activations to
    BF16 there, and so give other results than elsewhere, with codes that no longer dequantize.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """Quantizes while loading."""
        _require_bitsandbytes(self.name)
        from bitsandbytes.nn import Linear4bit

        dtype = compute_dtype(device)
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=self.name, bnb_4bit_compute_dtype=dtype
        )
        model = from_pretrained(path, device, dtype=dtype, quantization_config=config)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
        return model

    def holds(self, module: nn.Module) -> bool:
        """4-bit codes of this very type, with their quantization state."""
        from bitsandbytes.nn import Linear4bit

        if not isinstance(module, Linear4bit):
            return False
        state = module.weight.quant_state
        return state is not None and state.quant_type == self.name

    def dense(self, module: nn.Module) -> Tensor:
        """bitsandbytes' own dequantization; norms of the packed bytes would be meaningless."""
        from bitsandbytes.functional import dequantize_4bit

        weight = module.weight
        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[union-attr]
        return dense

    def scale_bytes(self, module: nn.Module) -> int:
        """One scale a block."""
        absmax = module.weight.quant_state.absmax  # type: ignore[union-attr]
        assert isinstance(absmax, Tensor)
        return absmax.nbytes


def _row_scales(module: nn.Module) -> Tensor:
    """SCB, which moves from the weight to the module's state at the first forward."""
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB  # type: ignore[union-attr]
    assert isinstance(scales, Tensor)
    return scales


def _is_news(record: logging.LogRecord) -> bool:
    """bitsandbytes says at every product that it casts its input, which is what int8 is."""
    return "inputs will be cast" not in str(record.msg)


def _require_bitsandbytes(name: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise HQError(f"Precision {name!r} needs bitsandbytes: pip install 'hq[bnb]'.") from error


PRECISIONS.add(Int8.name, Int8())
for _name in ("nf4", "fp4"):
    PRECISIONS.add(_name, FourBit(_name))
