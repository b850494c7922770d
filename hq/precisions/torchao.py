"""torchao-int8, torchao-int4 and hqq-4: weights quantized by torchao at load, without calibration.

Activations and sums stay in the compute type. Memory holds each 4-bit code in a byte, as torchao's
4-bit CPU kernels either round to BF16 or take 70 times as long in FP32.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hq.errors import HQError
from hq.precisions.base import StoredWeight
from hq.precisions.dense import FP16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP = 64  # inputs that share a scale at 4 bits; divides the widths of most models


class TorchAO:
    """Base class: an FP16 model is loaded, then its linears get weights quantized by torchao."""

    name: str
    packages: tuple[str, ...] = ("torchao",)
    settings: Mapping[str, object] = {}
    replaces: tuple[type[nn.Module], ...] = (nn.Linear,)
    _bits: int
    _storage: str

    def loaded_in(self, device: torch.device) -> torch.dtype:
        """FP16, from which it quantizes."""
        return FP16().loaded_in(device)

    def load(self, path: Path, device: torch.device) -> "PreTrainedModel":
        """The model, with every linear of its body quantized after loading."""
        import_torchao(self.name)
        model = FP16().load(path, device)
        for name, linear in _linears(model.get_decoder()):
            linear.weight = nn.Parameter(self._quantized(name, linear.weight), requires_grad=False)
        return model

    def layer(self, weight: Tensor) -> nn.Module:
        """A linear with this weight, quantized."""
        import_torchao(self.name)
        linear: Any = FP16().layer(weight)
        linear.weight = nn.Parameter(self._quantized("weight", linear.weight), requires_grad=False)
        module: nn.Module = linear
        return module

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether it is a plain linear with a weight that torchao quantized at this precision."""
        return type(module) is nn.Linear and self._is_quantized(module.weight)

    def dense(self, module: nn.Module) -> Tensor:
        """W, dequantized by torchao."""
        weight: Any = module.weight
        dense: Tensor = weight.dequantize()
        return dense

    def stored(self, module: nn.Module) -> StoredWeight:
        """Codes, scales and zero points."""
        weight: Any = module.weight
        count = weight.qdata.numel()
        scale_bytes = weight.scale.nbytes + weight.zero_point.nbytes
        nbytes = weight.qdata.nbytes + scale_bytes
        packed_nbytes = count * self._bits // 8 + scale_bytes
        return StoredWeight(self._storage, nbytes, count, packed_nbytes)

    def _quantized(self, name: str, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _is_quantized(self, weight: Any) -> bool:
        raise NotImplementedError


class TorchAOInt8(TorchAO):
    """8 bits, symmetric, one scale per row."""

    name = "torchao-int8"
    _bits = 8
    _storage = "int8"

    def _quantized(self, name: str, weight: Tensor) -> Tensor:
        torchao = import_torchao(self.name)
        quantized: Tensor = torchao.Int8Tensor.from_hp(weight, torchao.PerRow())
        return quantized

    def _is_quantized(self, weight: Any) -> bool:
        return (
            isinstance(weight, import_torchao(self.name).Int8Tensor)
            and weight.act_quant_kwargs is None
        )


class TorchAOInt4(TorchAO):
    """4 bits, symmetric, one scale per group of inputs, rounded to the nearest code."""

    name = "torchao-int4"
    settings: Mapping[str, object] = {"group_size": GROUP}
    _bits = 4
    _storage = f"int4 in bytes g{GROUP} sym"
    _float_zeros = False

    def _quantized(self, name: str, weight: Tensor) -> Tensor:
        if weight.shape[1] % GROUP:
            raise HQError(
                f"{name} has {weight.shape[1]} inputs, which groups of {GROUP} do not divide: "
                f"{self.name} cannot run this model."
            )
        return self._in_groups(weight)

    def _in_groups(self, weight: Tensor) -> Tensor:
        tensor_class = import_torchao(self.name).IntxUnpackedToInt8Tensor
        quantized: Tensor = tensor_class.from_hp(weight, (1, GROUP), _int4())
        return quantized

    def _is_quantized(self, weight: Any) -> bool:
        return (
            isinstance(weight, import_torchao(self.name).IntxUnpackedToInt8Tensor)
            and weight.target_dtype == _int4()
            and tuple(weight.block_size) == (1, GROUP)
            and weight.activation_quantization is None
            and weight.zero_point.is_floating_point() == self._float_zeros
        )


class HQQ(TorchAOInt4):
    """4 bits by half-quadratic quantization, which fits zero points so that few errors are large.

    torchao does the fit; the package hqq has had no release since October 2025.
    """

    name = "hqq-4"
    _storage = f"int4 in bytes g{GROUP} hqq"
    _float_zeros = True

    def _in_groups(self, weight: Tensor) -> Tensor:
        from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_affine_hqq

        codes, scale, zero, _ = _choose_qparams_and_quantize_affine_hqq(
            weight,
            nbits=self._bits,
            group_size=GROUP,
            compute_dtype=torch.float16,
            device=str(weight.device),
            raw_output=True,
        )
        middle = 1 << self._bits - 1  # HQQ's codes begin at 0, torchao's signed codes at -middle
        quantized: Tensor = import_torchao(self.name).IntxUnpackedToInt8Tensor(
            qdata=(codes.to(torch.int8) - middle).contiguous(),
            scale=scale,
            zero_point=zero - middle,
            target_dtype=_int4(),
            block_size=(1, GROUP),
            dtype=weight.dtype,
            activation_quantization=None,
        )
        return quantized


def _linears(body: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, m) for name, m in body.named_modules() if isinstance(m, nn.Linear))


def _int4() -> torch.dtype:
    """torch.int4, which is missing in the type stubs of torch."""
    dtype: torch.dtype = vars(torch)["int4"]
    return dtype


def import_torchao(precision: str) -> Any:
    """The package torchao.quantization. Raises HQError if it is not installed."""
    try:
        import torchao.quantization
    except ImportError as error:
        raise HQError(
            f"Precision {precision!r} needs torchao: pip install 'hq[torchao]'."
        ) from error
    return torchao.quantization
