"""int8 (LLM.int8()), nf4 and fp4 through bitsandbytes, on CPU and CUDA."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from hq.errors import HQError
from hq.models.checkpoint import quantization_of
from hq.precisions.base import PRECISIONS, Stored, compute_dtype, from_pretrained, require_dense


class Int8:
    """LLM.int8(): rows of the weight in 8 bits, activations in 8 bits but for outlier columns."""

    name = "int8"
    packages: tuple[str, ...] = ("bitsandbytes",)
    settings: Mapping[str, object] = {}

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """Quantizes while loading."""
        package(self.name)
        _require_usable(path, self.name)
        return from_pretrained(
            path,
            device,
            dtype=compute_dtype(device),
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        )

    def layer(self, weight: Tensor) -> nn.Module:
        """The weight as bitsandbytes' own 8-bit linear; it quantizes when it is moved."""
        bnb = package(self.name)
        linear: nn.Module = bnb.nn.Linear8bitLt(
            weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False
        )
        linear.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        return linear.to(weight.device)

    def holds(self, module: nn.Module) -> bool:
        """8-bit integers in bitsandbytes' own linear."""
        return (
            isinstance(module, package(self.name).nn.Linear8bitLt)
            and module.weight.dtype == torch.int8
        )

    def dense(self, module: nn.Module) -> Tensor:
        """Row r of W is SCB[r] / 127 times its integers."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.float() * (_row_scales(module).float() / 127)[:, None]

    def stored(self, module: nn.Module) -> Stored:
        """Codes, and one float32 a row."""
        return _stored(module, _row_scales(module).nbytes)


class FourBit:
    """nf4 or fp4: blocks of 64 weights, 4-bit codes, one float32 scale a block.

    Products are of the dequantized weight, in the compute type. Left to itself, bitsandbytes would
    repack weights at the first forward on a CPU with AVX512-BF16, round scales and activations to
    BF16 there, and so give other results than elsewhere, with codes that no longer dequantize.
    """

    packages: tuple[str, ...] = ("bitsandbytes",)
    settings: Mapping[str, object] = {}

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """Quantizes while loading."""
        kind = package(self.name).nn.Linear4bit
        _require_usable(path, self.name)
        dtype = compute_dtype(device)
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=self.name, bnb_4bit_compute_dtype=dtype
        )
        model = from_pretrained(path, device, dtype=dtype, quantization_config=config)
        for module in model.modules():
            if isinstance(module, kind):
                module.support_avx512bf16_for_cpu = False
        return model

    def layer(self, weight: Tensor) -> nn.Module:
        """The weight as bitsandbytes' own 4-bit linear; it quantizes when it is moved."""
        bnb = package(self.name)
        linear: nn.Module = bnb.nn.Linear4bit(
            weight.shape[1], weight.shape[0], bias=False, quant_type=self.name
        )
        linear.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type=self.name)
        return linear.to(weight.device)

    def holds(self, module: nn.Module) -> bool:
        """4-bit codes of this very type, with their quantization state."""
        state = getattr(module.weight, "quant_state", None)
        return (
            isinstance(module, package(self.name).nn.Linear4bit)
            and getattr(state, "quant_type", "") == self.name
        )

    def dense(self, module: nn.Module) -> Tensor:
        """Bitsandbytes' own dequantization; norms of the packed bytes would be meaningless."""
        from bitsandbytes.functional import dequantize_4bit

        weight: Any = module.weight
        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense

    def stored(self, module: nn.Module) -> Stored:
        """Codes, and one scale a block."""
        weight: Any = module.weight
        return _stored(module, int(weight.quant_state.absmax.nbytes))


def _require_usable(path: Path, precision: str) -> None:
    """Raises HQError for a checkpoint that another method has quantized.

    One that bitsandbytes itself has is loaded as it is, and audited as any other.
    """
    if quantization_of(path) != "bitsandbytes":
        require_dense(path, precision)


def _row_scales(module: nn.Module) -> Tensor:
    """SCB, which moves from the weight to the module's state at the first forward."""
    weight, state = (getattr(module, name) for name in ("weight", "state"))
    scales: Tensor = state.SCB if weight.SCB is None else weight.SCB
    return scales


def _stored(module: Any, scale_bytes: int) -> Stored:
    weight: Tensor = module.weight
    size = module.in_features * module.out_features
    return Stored(str(weight.dtype).removeprefix("torch."), weight.nbytes + scale_bytes, size)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that int8 casts its input, said at every product; nor that no kernel was downloaded."""
    return not str(record.msg).startswith(
        ("MatMul8bitLt: inputs will be", "Failed to load CPU gemm")
    )


def package(name: str) -> Any:
    """The package. Raises HQError when it is not installed."""
    for module in ("autograd._functions", "backends.cpu.ops"):
        logging.getLogger(f"bitsandbytes.{module}").addFilter(_is_news)
    try:
        import bitsandbytes
    except ImportError as error:
        raise HQError(f"Precision {name!r} needs bitsandbytes: pip install 'hq[bnb]'.") from error
    return bitsandbytes


PRECISIONS.add(Int8.name, Int8())
for _name in ("nf4", "fp4"):
    PRECISIONS.add(_name, FourBit(_name))
