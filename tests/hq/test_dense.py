"""bf16 rounds weights once, to BF16, and nothing else: fp16 is of the same class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hq
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.precisions.base import compute_dtype
from hq.precisions.dense import BF16, FP16
from tests import tiny

# FP16 has 1 + 2⁻⁸ for the first, which ties to even in BF16; it has 0 and infinity for the others.
ROUNDED_ONCE = [(1 + 2**-8 + 2**-13, 1 + 2**-7), (2.0**-30, 2.0**-30), (2.0**17, 2.0**17)]


def bf16_values(weight: Tensor) -> Tensor:
    """Rounded to the nearest BF16, ties to even, by the bits of FP32."""
    bits = weight.float().numpy().view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32))


@pytest.fixture
def wide(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """The tiny llama in FP32, with some weights that FP16 would change."""
    folder = tmp_path / "wide"
    hf.AutoModelForCausalLM.from_pretrained(
        checkpoint("llama"), dtype=torch.float32
    ).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensor += torch.randn(tensor.shape, generator=generator) * 1e-6
            tensor[0, : len(ROUNDED_ONCE)] = torch.tensor([v for v, _ in ROUNDED_ONCE]) / 2**17
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_bf16_is_fp32_arithmetic_on_weights_that_were_rounded_to_bf16(
    wide: Path, tmp_path: Path
) -> None:
    rounded = tmp_path / "rounded"
    model = hf.AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(bf16_values(parameter))
    model.save_pretrained(rounded)
    exchanges = tiny.exchanges()
    with TorchBackend(wide, "bf16", device="cpu") as backend:
        assert backend.compute == "float32"
        found = list(backend.trace(exchanges))
        model = hf.AutoModelForCausalLM.from_pretrained(rounded, dtype=torch.float32)
        expected = list(hq.wrap(model).backend.trace(exchanges, ("sum",), ("answer",)))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.values, other.values)
        with TorchBackend(wide, "fp16", device="cpu") as fp16:
            plain = list(fp16.trace(exchanges))
        assert not np.array_equal(plain[0].values, found[0].values)


@pytest.mark.parametrize(("value", "expected"), ROUNDED_ONCE)
def test_bf16_is_not_rounded_through_fp16(wide: Path, value: float, expected: float) -> None:
    layer = BF16().layer(torch.full((2, 2), value))
    assert torch.equal(layer.weight, torch.full((2, 2), expected))
    through = FP16().layer(torch.full((2, 2), value)).weight.bfloat16().float()
    assert not torch.equal(through, torch.full((2, 2), expected))
    with TorchBackend(wide, "bf16", device="cpu") as backend:
        weights = load_file(wide / "model.safetensors")
        for name, parameter in backend.model.named_parameters():
            if name in weights:
                assert torch.equal(parameter, bf16_values(weights[name])), name


def test_fp16_weights_are_refused_under_the_name_bf16(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BF16, "load", lambda self, *args: FP16().load(*args))
    with pytest.raises(HQError, match="21 of 21 projections are not bf16"):
        TorchBackend(checkpoint("llama"), "bf16", device="cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_are_recognised_by_their_type(dtype: torch.dtype) -> None:
    linear = nn.Linear(4, 4, bias=False, dtype=dtype)
    assert BF16().is_precision_of(linear) == (dtype == torch.bfloat16)


def test_a_gpu_computes_in_the_type_of_the_precision() -> None:
    cuda = torch.device("cuda")
    assert compute_dtype(cuda, BF16()) == torch.bfloat16
    assert compute_dtype(cuda, FP16()) == compute_dtype(cuda) == torch.float16
    assert compute_dtype(torch.device("cpu"), BF16()) == torch.float32
