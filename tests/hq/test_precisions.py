"""Precisions are what they say: real storage, norms of what multiplies, and no silent fallback."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.neurons.cett import column_norms
from hq.precisions import PRECISIONS
from hq.precisions.bitsandbytes import FourBit, Int8
from hq.precisions.dense import FP16
from hq.precisions.packed import recipe_of
from tests import tiny

Checkpoint = Callable[[str], Path]
BITSANDBYTES = ("int8", "nf4", "nf4-dq", "fp4")
# 4 bits and a float32 for each block of 64; 8 bits and a float32 for each row, of 64 or 128.
# torchao holds a byte a code, beside a scale and a zero point a row or a group.
# The 8-bit scales of 32 to 128 blocks have one float32 scale and one float32 offset in all.
DOUBLE = {round(4 + 8 / 64 + 64 / weights, 3) for weights in (64 * 32, 64 * 64, 64 * 128)}
BITS = {
    "fp16": {32.0},
    "bf16": {32.0},
    "int8": {8.25, 8.5},
    "nf4": {4.5},
    "fp4": {4.5},
    "nf4-dq": DOUBLE,
    "torchao-int8": {8.312, 8.625},
    "torchao-int4": {8.625},
    "hqq-4": {8.5},
    # A float32 scale per row; 8 bits per block of 16 and 32 bits per tensor; 8 bits per block of 32.
    "fp8": {8.25, 8.5},
    "nvfp4": {round(4.5 + 32 / weights, 3) for weights in (64 * 32, 64 * 64, 64 * 128)},
    "mxfp4": {4.25},
}

# Largest error of a norm.
NEAR = {
    "fp16": (0, 1e-6),
    "bf16": (1e-5, 1e-3),
    "int8": (1e-4, 0.02),
    "torchao-int8": (1e-4, 0.02),
    "fp8": (1e-3, 0.02),
}

# What is read from packed checkpoints has tests of its own, test_packed.py and test_gptqmodel.py;
# there is more about torchao in test_torchao.py, about fp8, nvfp4 and mxfp4 in test_block_float.py.
TORCHAO = ("torchao-int8", "torchao-int4", "hqq-4")
MADE_WHILE_LOADING = tuple(name for name in PRECISIONS if recipe_of(name) is None)


@pytest.fixture(params=MADE_WHILE_LOADING)
def backend(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[TorchBackend]:
    """The tiny llama at each precision."""
    if request.param in TORCHAO:
        pytest.importorskip("torchao")
    with TorchBackend(checkpoint("llama"), request.param, device="cpu") as opened:
        yield opened


def source(checkpoint: Checkpoint, layer: int) -> torch.Tensor:
    """The source's own W_down of a layer."""
    weights = load_file(checkpoint("llama") / "model.safetensors")
    return weights[f"model.layers.{layer}.mlp.down_proj.weight"].float()


def test_norms_are_those_of_the_matrix_that_multiplies(backend: TorchBackend) -> None:
    """Unit vectors through the real kernel give the columns of the W_down that it uses."""
    for layer, down in enumerate(backend.downs):
        with torch.inference_mode():
            columns = down(torch.eye(tiny.D_FF))  # [d_ff, d_model]
        norms = torch.linalg.vector_norm(columns, dim=1).numpy()
        np.testing.assert_allclose(backend.norms.reshape(tiny.LAYERS, -1)[layer], norms, rtol=2e-3)


def test_norms_do_not_change_after_a_forward(backend: TorchBackend) -> None:
    """LLM.int8() moves its scales at the first one."""
    before = backend.norms
    list(backend.trace(tiny.exchanges()))
    del backend.norms, backend._norms
    np.testing.assert_array_equal(backend.norms, before)


def test_norms_are_the_variants_own(checkpoint: Checkpoint, backend: TorchBackend) -> None:
    error = np.abs(
        backend.norms.reshape(tiny.LAYERS, -1)[0] / column_norms(source(checkpoint, 0)).numpy() - 1
    ).max()
    low, high = NEAR.get(backend.precision, (0.01, 0.3))
    assert low <= error <= high


@pytest.mark.parametrize("precision", ["nf4", "nf4-dq", "fp4"])
def test_norms_of_packed_weights_are_the_trap(precision: str, checkpoint: Checkpoint) -> None:
    """What a reader of `weight.norm(dim=0)` gets: one number, which broadcasts without a word."""
    with TorchBackend(checkpoint("llama"), precision, device="cpu") as backend:
        packed = column_norms(backend.downs[0].weight.data)
        assert packed.shape == (1,)
        assert not np.allclose(backend.norms.reshape(tiny.LAYERS, -1)[0], packed.numpy(), rtol=0.5)


def test_norms_of_int8_codes_are_the_trap(checkpoint: Checkpoint) -> None:
    with TorchBackend(checkpoint("llama"), "int8", device="cpu") as backend:
        codes = column_norms(backend.downs[0].weight.data).numpy()
        assert (codes > 50 * backend.norms.reshape(tiny.LAYERS, -1)[0]).all()


def test_the_audit_shows_real_storage(backend: TorchBackend) -> None:
    rows = backend.audit()
    assert sum(row.count for row in rows) == 7 * tiny.LAYERS
    assert {row.bits_per_weight for row in rows} == BITS[backend.precision]
    projections = [m for name, m in backend.model.named_modules() if name.endswith("_proj")]
    assert sum(row.weights for row in rows) == sum(
        m.in_features * m.out_features for m in projections
    )
    storage, module = {
        "fp16": ("float32", "Linear"),
        "bf16": ("float32", "Linear"),
        "int8": ("int8", "Linear8bitLt"),
        "torchao-int8": ("int8", "Linear"),
        "torchao-int4": ("int4 in bytes g64 sym", "Linear"),
        "hqq-4": ("int4 in bytes g64 hqq", "Linear"),
        "fp8": ("float8_e4m3fn, a scale per row, dequantized to float32", "Linear"),
        "nvfp4": ("nvfp4, blocks of 1×16, dequantized to float32", "Linear"),
        "mxfp4": ("mxfp4, blocks of 1×32, dequantized to float32", "Linear"),
    }.get(backend.precision, ("uint8", "Linear4bit"))
    assert {(row.storage, row.module) for row in rows} == {(storage, module)}


def test_the_audit_holds_after_a_forward(backend: TorchBackend) -> None:
    before = backend.audit(), backend.weight_bytes()
    list(backend.trace(tiny.exchanges()))
    assert (backend.audit(), backend.weight_bytes()) == before


def test_weight_bytes_count_what_ships(checkpoint: Checkpoint) -> None:
    def of(precision: str) -> int:
        with TorchBackend(checkpoint("llama"), precision, device="cpu") as backend:
            return backend.weight_bytes()

    weights = load_file(checkpoint("llama") / "model.safetensors")
    rest = sum(t.nbytes for name, t in weights.items() if "_proj" not in name)
    in_layers = sum(t.numel() for name, t in weights.items() if "_proj" in name)
    slack = 1024  # buffers: rotary frequencies, quantization code books
    expected = {"fp16": 16, "bf16": 16, "nf4": 4.5, "fp4": 4.5, "nf4-dq": 4.127, "nvfp4": 4.5}
    expected["mxfp4"] = 4.25
    for precision, bits in expected.items():
        assert 0 <= of(precision) - (rest + in_layers * bits / 8) <= slack, precision
    assert of("nf4") < of("int8") < of("fp16")


@pytest.mark.parametrize(
    ("precision", "kind"), [("int8", Int8), *[(p, FourBit) for p in ("nf4", "nf4-dq", "fp4")]]
)
def test_a_model_loaded_dense_is_refused_under_another_name(
    precision: str, kind: type, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "load", lambda self, *args: FP16().load(*args))
    with pytest.raises(HQError, match=f"21 of 21 projections are not {precision}"):
        TorchBackend(checkpoint("llama"), precision, device="cpu")


def test_one_projection_left_dense_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: FourBit, path: Path, device: torch.device) -> Any:
        config = hf.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=["layers.1.mlp.up_proj"],
        )
        return hf.AutoModelForCausalLM.from_pretrained(path, quantization_config=config)

    monkeypatch.setattr(FourBit, "load", load)
    with pytest.raises(HQError, match=r"not nf4, 1\.mlp\.up_proj first"):
        TorchBackend(checkpoint("llama"), "nf4", device="cpu")


def test_fp4_is_not_taken_for_nf4(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    load = FourBit.load
    monkeypatch.setattr(FourBit, "load", lambda self, *args: load(FourBit("fp4"), *args))
    with pytest.raises(HQError, match="21 of 21 projections are not nf4"):
        TorchBackend(checkpoint("llama"), "nf4", device="cpu")


@pytest.mark.parametrize("loaded", ["nf4", "nf4-dq"])
def test_double_quantization_is_a_precision_of_its_own(
    loaded: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"nf4": "nf4-dq", "nf4-dq": "nf4"}[loaded]
    load, other = FourBit.load, FourBit("nf4", double=loaded == "nf4-dq")
    monkeypatch.setattr(FourBit, "load", lambda self, *args: load(other, *args))
    with pytest.raises(HQError, match=f"21 of 21 projections are not {asked}"):
        TorchBackend(checkpoint("llama"), asked, device="cpu")


def test_a_checkpoint_that_is_quantized_already_is_not_fp16(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with TorchBackend(checkpoint("llama"), "nf4", device="cpu") as backend:
        backend.model.save_pretrained(tmp_path)
    with pytest.raises(
        HQError, match=r"quantized already \(bitsandbytes\), so it does not run as fp16: .* \(nf4\)"
    ):
        TorchBackend(tmp_path, "fp16", device="cpu")


@pytest.mark.parametrize("saved", BITSANDBYTES)
def test_a_checkpoint_of_bitsandbytes_names_its_own_precision(
    saved: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with TorchBackend(checkpoint("llama"), saved, device="cpu") as backend:
        backend.model.save_pretrained(tmp_path)
        norms = backend.norms
    for asked in {*BITSANDBYTES, "fp8"} - {saved}:
        with pytest.raises(HQError, match=rf"name its own precision \({saved}\)\.$"):
            TorchBackend(tmp_path, asked, device="cpu")
    config = tmp_path / "config.json"
    stated = config.read_text(encoding="utf-8").replace(
        '"bnb_4bit_compute_dtype": "float32"', '"bnb_4bit_compute_dtype": "bfloat16"'
    )
    assert "bfloat16" in stated
    config.write_text(stated, encoding="utf-8")
    with TorchBackend(tmp_path, saved, device="cpu") as backend:
        np.testing.assert_allclose(backend.norms, norms, rtol=1e-6)
        assert getattr(backend.downs[0], "compute_dtype", torch.float32) == torch.float32


class Foreign(nn.Module):
    """A packed projection of a class that hq has never heard of, as GPTQ and AWQ kernels are."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.qweight = inner.weight.data.to(torch.int8)


def test_a_down_projection_of_an_unknown_class_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = FP16.load

    def foreign(self: FP16, path: Path, device: torch.device) -> Any:
        model = load(self, path, device)
        for layer in model.model.layers:
            layer.mlp.down_proj = Foreign(layer.mlp.down_proj)
        return model

    monkeypatch.setattr(FP16, "load", foreign)
    with pytest.raises(HQError, match=r"not fp16, 0\.mlp\.down_proj first"):
        TorchBackend(checkpoint("llama"), device="cpu")


@pytest.mark.parametrize("precision", BITSANDBYTES)
def test_without_bitsandbytes_the_extra_is_named(
    precision: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        HQError, match=rf"'{precision}' needs bitsandbytes: pip install 'hq\[bnb\]'"
    ):
        TorchBackend(checkpoint("llama"), precision, device="cpu")


def test_fp16_rounds_a_wider_checkpoint_to_fp16(tmp_path: Path) -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-5)
    model.save_pretrained(tmp_path)
    with TorchBackend(tmp_path, device="cpu") as backend:
        for parameter in backend.model.parameters():
            torch.testing.assert_close(parameter, parameter.half().float(), rtol=0, atol=0)
            assert parameter.dtype == torch.float32


def test_int8_is_silent(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    with (
        TorchBackend(checkpoint("llama"), "int8", device="cpu") as backend,
        caplog.at_level(logging.WARNING),
    ):
        list(backend.trace(tiny.exchanges()))
    assert not caplog.records


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_every_family_runs_quantized(family: str, precision: str, checkpoint: Checkpoint) -> None:
    with TorchBackend(checkpoint(family), precision, device="cpu") as backend:
        (batch,) = backend.trace(tiny.exchanges(), ("sum",), ("answer",))
    sums = batch.values.reshape(*batch.values.shape[:3], tiny.LAYERS, -1).sum(axis=-1)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
