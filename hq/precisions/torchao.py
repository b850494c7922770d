"""torchao-int8, torchao-int4 and hqq-4: weights quantized by torchao at load, without calibration.

Activations and sums stay in the compute type. A code of 4 bits is held in a byte, as torchao's
kernels of 4 bits for a CPU either round to BF16 or take 70 times as long in FP32.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hq.errors import HQError
from hq.precisions.base import PRECISIONS, Stored
from hq.precisions.dense import FP16

GROUP = 64  # inputs that share a scale, in 4 bits; it divides the widths of most models


class TorchAO:
    """What the three share: an FP16 model, loaded, whose linears then get torchao's weights."""

    name: str
    packages: tuple[str, ...] = ("torchao",)
    settings: Mapping[str, object] = {}
    _bits: int
    _storage: str

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """Quantizes every linear of the body, after loading."""
        library(self.name)
        model = FP16().load(path, device)
        for name, linear in _linears(model.get_decoder()):
            linear.weight = nn.Parameter(self._quantized(name, linear.weight), requires_grad=False)
        return model

    def layer(self, weight: Tensor) -> nn.Module:
        """A linear with this weight, quantized."""
        library(self.name)
        linear: Any = FP16().layer(weight)
        linear.weight = nn.Parameter(self._quantized("weight", linear.weight), requires_grad=False)
        module: nn.Module = linear
        return module

    def holds(self, module: nn.Module) -> bool:
        """A plain linear whose weight is torchao's, quantized as this precision says."""
        return type(module) is nn.Linear and self._is_own(module.weight)

    def dense(self, module: nn.Module) -> Tensor:
        """Torchao's own dequantization."""
        weight: Any = module.weight
        dense: Tensor = weight.dequantize()
        return dense

    def stored(self, module: nn.Module) -> Stored:
        """Codes, scales and zero points."""
        weight: Any = module.weight
        count = weight.qdata.numel()
        rest = weight.scale.nbytes + weight.zero_point.nbytes
        held, packed = weight.qdata.nbytes + rest, count * self._bits // 8 + rest
        return Stored(self._storage, held, count, packed)

    def _quantized(self, name: str, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _is_own(self, weight: Any) -> bool:
        raise NotImplementedError


class Int8(TorchAO):
    """8 bits, symmetric, a scale a row."""

    name = "torchao-int8"
    _bits = 8
    _storage = "int8"

    def _quantized(self, name: str, weight: Tensor) -> Tensor:
        torchao = library(self.name)
        made: Tensor = torchao.Int8Tensor.from_hp(weight, torchao.PerRow())
        return made

    def _is_own(self, weight: Any) -> bool:
        return isinstance(weight, library(self.name).Int8Tensor) and weight.act_quant_kwargs is None


class Int4(TorchAO):
    """4 bits, symmetric, a scale for each group of inputs: rounded to the nearest code."""

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
        kind = library(self.name).IntxUnpackedToInt8Tensor
        made: Tensor = kind.from_hp(weight, (1, GROUP), _int4())
        return made

    def _is_own(self, weight: Any) -> bool:
        return (
            isinstance(weight, library(self.name).IntxUnpackedToInt8Tensor)
            and weight.target_dtype == _int4()
            and tuple(weight.block_size) == (1, GROUP)
            and weight.activation_quantization is None
            and weight.zero_point.is_floating_point() == self._float_zeros
        )


class HQQ(Int4):
    """4 bits by half-quadratic quantization: zero points fitted so that few weights are far off.

    By torchao's fit; the package hqq has had no release since October 2025.
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
        middle = 1 << self._bits - 1  # HQQ's codes begin at zero, torchao's signed ones below it
        made: Tensor = library(self.name).IntxUnpackedToInt8Tensor(
            qdata=(codes.to(torch.int8) - middle).contiguous(),
            scale=scale,
            zero_point=zero - middle,
            target_dtype=_int4(),
            block_size=(1, GROUP),
            dtype=weight.dtype,
            activation_quantization=None,
        )
        return made


def _linears(body: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, m) for name, m in body.named_modules() if isinstance(m, nn.Linear))


def _int4() -> torch.dtype:
    """torch.int4, of which torch's own types do not tell."""
    dtype: torch.dtype = vars(torch)["int4"]
    return dtype


def library(precision: str) -> Any:
    """torchao.quantization. Raises HQError when it is not installed."""
    try:
        import torchao.quantization
    except ImportError as error:
        raise HQError(f"Precision {precision!r} needs torchao: pip install 'hq[torchao]'.") from (
            error
        )
    return torchao.quantization


for _kind in (Int8, Int4, HQQ):
    PRECISIONS.add(_kind.name, _kind())
