"""int8 (LLM.int8()), nf4, nf4-dq and fp4 through bitsandbytes, on CPU and CUDA."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from hq.errors import HQError
from hq.models.placement import AUTO
from hq.precisions.base import StoredWeight, compute_dtype, from_pretrained, require_precision

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


class Int8:
    """LLM.int8(): weights in 8 bits by row, activations in 8 bits except for outlier columns."""

    name = "int8"
    packages: tuple[str, ...] = ("bitsandbytes",)
    settings: Mapping[str, object] = {}

    @property
    def replaces(self) -> tuple[type[nn.Module], ...]:
        """Linear layers, and those of GPT-2."""
        return _linears()

    def loaded_in(self, device: torch.device) -> torch.dtype:
        """The compute type."""
        return compute_dtype(device)

    def reads(self, quantization: Mapping[str, Any]) -> bool:
        """Whether bitsandbytes quantized it to 8 bits."""
        return _is_own(quantization) and bool(quantization.get("load_in_8bit"))

    def load(self, path: Path, device: torch.device | Literal["auto"]) -> "PreTrainedModel":
        """The model, quantized while it is loaded, unless its checkpoint is."""
        from transformers import BitsAndBytesConfig

        import_bitsandbytes(self.name)
        return _load(path, device, self.name, BitsAndBytesConfig(load_in_8bit=True))

    def load_distributed(self, path: Path) -> "PreTrainedModel":
        """The model on all GPUs; bitsandbytes refuses weights in the CPU's memory."""
        return self.load(path, AUTO)

    def layer(self, weight: Tensor) -> nn.Module:
        """An 8-bit linear of bitsandbytes, which quantizes when it is moved to a device."""
        from transformers import BitsAndBytesConfig

        bnb = import_bitsandbytes(self.name)
        linear: nn.Module = bnb.nn.Linear8bitLt(
            weight.shape[1],
            weight.shape[0],
            bias=False,
            has_fp16_weights=False,
            threshold=BitsAndBytesConfig().llm_int8_threshold,  # as a loaded model has it
            device="meta",
        )
        linear.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        return linear.to(weight.device)

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether it is an 8-bit linear of bitsandbytes with int8 codes."""
        return (
            isinstance(module, import_bitsandbytes(self.name).nn.Linear8bitLt)
            and module.weight.dtype == torch.int8
        )

    def dense(self, module: nn.Module) -> Tensor:
        """W, of which row r is SCB[r] / 127 times its codes."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.float() * (_row_scales(module).float() / 127)[:, None]

    def stored(self, module: nn.Module) -> StoredWeight:
        """Codes, and one float32 scale per row."""
        return _stored(module, _row_scales(module).nbytes)


class FourBit:
    """nf4 or fp4: 4-bit codes in blocks of 64 weights, one float32 scale per block.

    With double quantization (name "…-dq", `bnb_4bit_use_double_quant`; Dettmers et al. 2023), the
    scales are 8-bit codes in blocks of 256, with one float32 scale per block and one offset.

    Products use the dequantized weight in the compute type. By default, bitsandbytes would repack
    weights at the first forward pass on a CPU with AVX512-BF16, and round scales and activations
    to BF16: results would differ from other machines, and codes would no longer dequantize.
    """

    packages: tuple[str, ...] = ("bitsandbytes",)
    settings: Mapping[str, object] = {}

    @property
    def replaces(self) -> tuple[type[nn.Module], ...]:
        """Linear layers, and those of GPT-2."""
        return _linears()

    def __init__(self, quant_type: str, double: bool = False) -> None:
        self.name = f"{quant_type}-dq" if double else quant_type
        self._type, self._double = quant_type, double

    def loaded_in(self, device: torch.device) -> torch.dtype:
        """The compute type."""
        return compute_dtype(device)

    def reads(self, quantization: Mapping[str, Any]) -> bool:
        """Whether bitsandbytes quantized it to 4 bits of this type; transformers' defaults hold."""
        return (
            _is_own(quantization)
            and bool(quantization.get("load_in_4bit"))
            and quantization.get("bnb_4bit_quant_type", "fp4") == self._type
            and bool(quantization.get("bnb_4bit_use_double_quant")) == self._double
        )

    def load(self, path: Path, device: torch.device | Literal["auto"]) -> "PreTrainedModel":
        """The model, quantized while it is loaded, unless its checkpoint is."""
        from transformers import BitsAndBytesConfig

        import_bitsandbytes(self.name)
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self._type,
            bnb_4bit_use_double_quant=self._double,
        )
        model = _load(path, device, self.name, config)
        compute_four_bit_in(model, _compute_dtype(device))
        return model

    def load_distributed(self, path: Path) -> "PreTrainedModel":
        """The model on all GPUs; bitsandbytes refuses weights in the CPU's memory."""
        return self.load(path, AUTO)

    def layer(self, weight: Tensor) -> nn.Module:
        """A 4-bit linear of bitsandbytes, which quantizes when it is moved to a device."""
        bnb = import_bitsandbytes(self.name)
        settings = {"quant_type": self._type, "compress_statistics": self._double}
        linear: nn.Module = bnb.nn.Linear4bit(
            weight.shape[1], weight.shape[0], bias=False, device="meta", **settings
        )
        linear.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, **settings)
        compute_four_bit_in(linear, compute_dtype(weight.device))
        return linear.to(weight.device)

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether it is a 4-bit linear of bitsandbytes with codes and scales of this type."""
        state = getattr(module.weight, "quant_state", None)
        return (
            isinstance(module, import_bitsandbytes(self.name).nn.Linear4bit)
            and getattr(state, "quant_type", "") == self._type
            and getattr(state, "nested", False) == self._double
        )

    def dense(self, module: nn.Module) -> Tensor:
        """W, dequantized by bitsandbytes; the packed bytes themselves have no meaningful norms."""
        from bitsandbytes.functional import dequantize_4bit

        weight: Any = module.weight
        dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return dense

    def stored(self, module: nn.Module) -> StoredWeight:
        """Codes, and the scales of the blocks, with their own scales and offset if coded."""
        weight: Any = module.weight
        state = weight.quant_state
        of_scales = state.state2.absmax.nbytes + state.offset.nbytes if self._double else 0
        return _stored(module, int(state.absmax.nbytes + of_scales))


def compute_four_bit_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Make the 4-bit linears of a model compute in `dtype`, with dequantized weights.

    A checkpoint of bitsandbytes may state another type.
    """
    four_bit = import_bitsandbytes("nf4").nn.Linear4bit
    for module in model.modules():
        if isinstance(module, four_bit):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = dtype, True


def import_bitsandbytes(precision: str) -> Any:
    """The package bitsandbytes. Raises HQError if it is not installed."""
    for module in ("autograd._functions", "backends.cpu.ops"):
        logging.getLogger(f"bitsandbytes.{module}").addFilter(_is_relevant)
    try:
        import bitsandbytes
    except ImportError as error:
        raise HQError(
            f"Precision {precision!r} needs bitsandbytes: pip install 'hq[bnb]'."
        ) from error
    return bitsandbytes


def _load(
    path: Path,
    device: torch.device | Literal["auto"],
    precision: str,
    config: "BitsAndBytesConfig",
) -> "PreTrainedModel":
    """A model of a dense checkpoint, or of one that bitsandbytes quantized at this precision."""
    is_quantized = require_precision(path, precision) is not None
    options = {} if is_quantized else {"quantization_config": config}
    return from_pretrained(path, device, dtype=_compute_dtype(device), **options)


def _compute_dtype(device: torch.device | Literal["auto"]) -> torch.dtype:
    return torch.float16 if device == AUTO else compute_dtype(device)


def _is_own(quantization: Mapping[str, Any]) -> bool:
    return str(quantization.get("quant_method")).lower() == "bitsandbytes"


def _row_scales(module: nn.Module) -> Tensor:
    """SCB, which moves from the weight to the module's state at the first forward pass."""
    weight, state = (getattr(module, name) for name in ("weight", "state"))
    scales: Tensor = state.SCB if weight.SCB is None else weight.SCB
    return scales


def _stored(module: Any, scale_bytes: int) -> StoredWeight:
    weight: Tensor = module.weight
    size = module.in_features * module.out_features
    dtype = str(weight.dtype).removeprefix("torch.")
    return StoredWeight(dtype, weight.nbytes + scale_bytes, size)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop two messages: int8 casts its input (at every product), and a kernel is not available."""
    return not str(record.msg).startswith(
        ("MatMul8bitLt: inputs will be", "Failed to load CPU gemm")
    )


def _linears() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D  # the import takes a second

    return nn.Linear, Conv1D
