"""fp8, nvfp4 and mxfp4: exact weights, real bits, and one sentence for whatever does not fit."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.alignment import LayerRelation, map_model
from hq.models.ffn_weights import of_checkpoint
from hq.precisions import PRECISIONS
from hq.precisions.dense import FP16
from hq.precisions.e2m1 import round_to_e2m1
from tests import tiny
from tests.block_float_files import (
    DYNAMIC,
    E2M1,
    KINDS,
    compressed,
    edit_config,
    edit_tensors,
    fine_grained,
    fp8,
    save,
    tensors,
)

NAMES = ("fp8", "nvfp4", "mxfp4")
UP = "model.layers.1.mlp.up_proj"


def weight(rows: int = 96, columns: int = 128) -> Tensor:
    """FP16 values, with a row and a block of zeros."""
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).half().float()
    made[3], made[5, :32] = 0, 0
    return made


Dense = dict[str, Tensor]


@pytest.fixture(scope="module")
def made(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Dense]]:
    """The tiny llama in a format, made once, and the weights that it represents; read only."""

    @cache
    def of(kind: str) -> tuple[Path, Dense]:
        folder = tmp_path_factory.mktemp("block-float") / kind
        return folder, save(checkpoint("llama"), folder, KINDS[kind])

    return of


@pytest.fixture
def make(made: Callable[[str], tuple[Path, Dense]], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of it, to damage."""
    return lambda kind: Path(shutil.copytree(made(kind)[0], tmp_path / kind))


# --- the weights of checkpoints


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_has_the_weights_of_the_definition(kind, checkpoint, made):
    folder, dense = made(kind)
    with TorchBackend(folder, KINDS[kind].precision, device="cpu") as backend:
        modules = dict(backend.model.named_modules())
        for name, expected in dense.items():
            torch.testing.assert_close(modules[name].weight.data, expected, rtol=0, atol=0)
        assert backend.compute == "float32"
        found = list(map_model(of_checkpoint(checkpoint("llama")), backend.ffns()))
        assert {layer.relation for layer in found} == {LayerRelation.IDENTICAL}


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("fine")])
def test_the_definition_is_that_of_compressed_tensors(kind):
    """The library rounds products to the type of the scales, so it is asked for float32."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    parts, expected = tensors(weight(), KINDS[kind])
    (group,) = KINDS[kind].config["config_groups"].values()
    args = QuantizationScheme.model_validate(group).weights
    codes, scale = parts.get("weight"), parts["weight_scale"]
    if codes is None:
        codes = unpack_fp4_from_uint8(parts["weight_packed"], 96, 128, torch.float32)
    scale = torch.exp2(scale.float() - 127) if kind == "mxfp4" else scale.float()
    found = dequantize(
        codes, scale, args=args, global_scale=parts.get("weight_global_scale"), dtype=torch.float32
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("fine")])
def test_compressed_tensors_decompresses_to_the_same_weights(kind):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    parts, expected = tensors(weight(), KINDS[kind])
    config = KINDS[kind].config
    (group,) = config["config_groups"].values()
    library = BaseCompressor.get_value_from_registry(config["format"])
    found = library.decompress(parts, QuantizationScheme.model_validate(group))["weight"]
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["fine-grained", "fine-grained-tensor"])
def test_fine_grained_weights_are_those_of_transformers(kind):
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    parts, expected = tensors(weight(), KINDS[kind])
    scales = parts["weight_scale_inv"].reshape(-1, 1) if "tensor" in kind else None
    inputs = {"weight": parts["weight"], "weight_scale_inv": parts["weight_scale_inv"]}
    if scales is not None:
        inputs["weight_scale_inv"] = scales
    quantizer = FineGrainedFP8HfQuantizer(FineGrainedFP8Config(dequantize=True))
    (found,) = Fp8Dequantize(quantizer).convert(inputs).values()
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0)


def test_scales_that_are_exponents_are_read(make):
    folder = make("fine-grained")
    name = f"{UP}.weight_scale_inv"
    powers = torch.full((4, 2), 2.0**-9)
    edit_tensors(folder, lambda t: t.update({name: powers.to(torch.float8_e8m0fnu)}))
    with TorchBackend(folder, "fp8", device="cpu") as exponents:
        found = exponents.model.get_submodule(UP).weight.clone()
    edit_tensors(folder, lambda t: t.update({name: powers}))
    with TorchBackend(folder, "fp8", device="cpu") as numbers:
        torch.testing.assert_close(found, numbers.model.get_submodule(UP).weight, rtol=0, atol=0)


# --- weights that are made while loading


@pytest.mark.parametrize(
    ("name", "preset"), [("fp8", "FP8_DYNAMIC"), ("nvfp4", "NVFP4A16"), ("mxfp4", "MXFP4A16")]
)
def test_rounding_is_that_of_compressed_tensors(name, preset):
    """Its min-max scales and its rounding, as llm-compressor uses them without calibration."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams
    from compressed_tensors.quantization.utils.helpers import generate_gparam

    source = weight()
    args = preset_name_to_scheme(preset, ["Linear"]).weights
    blocks = source.view(96, -1, args.group_size or 128)
    whole = generate_gparam(source.min(), source.max()) if name == "nvfp4" else None
    scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, whole)
    codes = quantize(source, scale, None, args, global_scale=whole)
    expected = dequantize(codes, scale, args=args, global_scale=whole, dtype=torch.float32)
    layer = PRECISIONS[name].layer(source)
    torch.testing.assert_close(PRECISIONS[name].dense(layer), expected, rtol=0, atol=0)
    torch.testing.assert_close(layer(torch.eye(128)).T, expected, rtol=1e-6, atol=0)


def test_four_bit_floats_are_rounded_to_the_nearest_ties_to_even():
    values = torch.linspace(-7, 7, 4001)
    found = round_to_e2m1(values)
    nearest = (values[:, None] - E2M1).abs().amin(-1)
    torch.testing.assert_close(
        (found - values).abs().double(), nearest.clamp(max=1), rtol=0, atol=1e-6
    )
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0])
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -0.0, -4.0])
    torch.testing.assert_close(round_to_e2m1(ties), even, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "most"), [("fp8", 0.027), ("nvfp4", 0.1), ("mxfp4", 0.125)])
def test_fewer_bits_err_more(name, most):
    dense = PRECISIONS[name].dense(PRECISIONS[name].layer(weight()))
    error = float((dense - weight()).norm() / weight().norm())
    assert most / 2 < error < most


# --- what the audit says


@pytest.mark.parametrize(
    ("kind", "storage", "bits"),
    [
        ("fp8-tensor", "float8_e4m3fn, one scale", {8.008, 8.004, 8.002}),
        ("fp8-channel", "float8_e4m3fn, a scale per row, activations not quantized", {8.5, 8.25}),
        ("fp8-block", "float8_e4m3fn, blocks of 32×64", {8.016}),
        ("fine-grained", "float8_e4m3fn, blocks of 32×32, activations not quantized", {8.031}),
        ("nvfp4", "nvfp4, blocks of 1×16", {4.516, 4.508, 4.504}),
        ("mxfp4", "mxfp4, blocks of 1×32", {4.25}),
    ],
)
def test_the_audit_counts_what_the_checkpoint_stores(kind, storage, bits, make):
    folder = make(kind)
    with TorchBackend(folder, KINDS[kind].precision, device="cpu") as backend:
        rows = backend.audit()
        without = ", activations not quantized"
        plain = storage.removesuffix(without)
        runs = f"{plain}, dequantized to float32{without if storage != plain else ''}"
        assert {row.storage for row in rows} == {runs}
        assert {row.bits_per_weight for row in rows} == bits
        assert {row.compute for row in rows} == {"float32"}
        assert sum(row.count for row in rows) == 7 * tiny.LAYERS
        file = (folder / "model.safetensors").stat().st_size
        assert abs(backend.weight_bytes() - file) < 25_000  # the header and buffers


def test_only_its_own_weights_are_its_precision():
    for one in NAMES:
        layer = PRECISIONS[one].layer(weight())
        assert [other for other in NAMES if PRECISIONS[other].is_precision_of(layer)] == [one]
        assert not PRECISIONS[one].is_precision_of(FP16().layer(weight()))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_loaded_dense_is_refused_under_another_name(name, checkpoint, monkeypatch):
    monkeypatch.setattr(type(PRECISIONS[name]), "load", lambda self, *args: FP16().load(*args))
    with pytest.raises(HQError, match=f"21 of 21 projections are not {name}"):
        TorchBackend(checkpoint("llama"), name, device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_another_class_is_refused(name, checkpoint):
    """GPT-2's Conv1D."""
    with pytest.raises(HQError, match=f"12 of 12 projections are not {name}"):
        TorchBackend(checkpoint("gpt2"), name, device="cpu")


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_a_width_that_blocks_do_not_divide_is_named(name, tmp_path):
    tiny.model("llama", intermediate_size=104).half().save_pretrained(tmp_path)
    with pytest.raises(HQError, match=r"0\.mlp\.down_proj has 104 inputs, which blocks of"):
        TorchBackend(tmp_path, name, device="cpu")


# --- what is rejected


@pytest.mark.parametrize("kind", ["fp8-channel", "fine-grained", "nvfp4", "mxfp4"])
def test_no_other_precision_runs_it(kind, make, monkeypatch):
    """The error names its own precision, and comes before any weight is read."""
    folder, own = make(kind), KINDS[kind].precision
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    others = ("fp16", "int8", "nf4", "torchao-int8", "gptq-4", "compressed-4", "compressed-8")
    for asked in {*others, *NAMES} - {own}:
        if asked.startswith("torchao"):
            pytest.importorskip("torchao")
        with pytest.raises(HQError, match=rf"does not run as .*: name its own precision \({own}\)"):
            TorchBackend(folder, asked, device="cpu")


STATIC = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
CONFIGS = {
    "static": (fp8("channel", STATIC), "quantizes activations with static scales"),
    "local": (fp8("channel", DYNAMIC | {"dynamic": "local"}), "activations with static scales"),
    "static, fine-grained": (
        fine_grained([32, 32], activation_scheme="static"),
        "quantizes activations with static scales",
    ),
    "zero points": (fp8("channel", symmetric=False), "has zero points"),
    "cache": (fp8("channel") | {"kv_cache_scheme": {"num_bits": 8}}, "has a kv_cache_scheme"),
    "rotated": (fp8("channel") | {"transform_config": {"a": 1}}, "has a transform_config"),
    "groups of 32": (fp8("group", group_size=32), "name its source"),
    "MXFP8": (compressed("mxfp8-quantized", num_bits=8, type="float"), "name its source"),
    "no blocks": (fp8("block"), "has block_structure = "),
    "a block of three": (fine_grained([32, 32, 32]), "has weight_block_size ="),
    "blocks of zero": (fine_grained([0, 32]), "has weight_block_size ="),
    "other blocks": (fp8("block", block_structure=[64, 64]), r"not \(\d, \d\)"),
    "fine-grained": (fine_grained([32, 32]), r"lacks .*weight_scale_inv"),
    "one scale": (fp8("tensor"), r"not \(1, 1\)"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_of_something_else_is_refused(case, make):
    config, words = CONFIGS[case]
    folder = make("fp8-channel")
    edit_config(folder, lambda stated: stated.update(quantization_config=config))
    with pytest.raises(HQError, match=words) as refused:
        TorchBackend(folder, "fp8", device="cpu")
    assert str(refused.value).endswith(".")


def fill(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].fill_(value)


NAN, INPUT = float("nan"), f"{UP}.input_scale"
TENSORS = {
    "no scale": ("fp8-channel", lambda t: t.pop(f"{UP}.weight_scale"), "lacks .*weight_scale:"),
    "no block scale": ("fine-grained", lambda t: t.pop(f"{UP}.weight_scale_inv"), "lacks .*_inv:"),
    "no codes": ("fp8-channel", lambda t: t.pop(f"{UP}.weight"), r"lacks .*up_proj\.weight:"),
    "no scale of nvfp4": ("nvfp4", lambda t: t.pop(f"{UP}.weight_scale"), "lacks .*weight_scale:"),
    "no global scale": ("nvfp4", lambda t: t.pop(f"{UP}.weight_global_scale"), "lacks .*_global_"),
    "NaN": ("fp8-channel", fill(f"{UP}.weight_scale", NAN), "scales of .*up_proj that are not"),
    "infinite": ("fine-grained", fill(f"{UP}.weight_scale_inv", torch.inf), "are not finite"),
    "no global": ("nvfp4", fill(f"{UP}.weight_global_scale", 0), "are not finite"),
    "NaN in FP8": ("nvfp4", fill(f"{UP}.weight_scale", NAN), "are not finite"),
    "NaN in E8M0": ("mxfp4", fill(f"{UP}.weight_scale", 255), "are not finite"),
    "NaN codes": ("fp8-channel", fill(f"{UP}.weight", NAN), "codes in .* that are NaN"),
    "static": ("fp8-channel", lambda t: t.update({INPUT: torch.ones(1)}), "scales of activations"),
    "another shape": (
        "fp8-channel",
        lambda t: t.update({f"{UP}.weight_scale": torch.ones(64, 1)}),
        r"has the shape \(64, 1\), not \(128, 1\), which 128×64 weights in blocks of 1×64",
    ),
    "odd width": (
        "mxfp4",
        lambda t: t.update({f"{UP}.weight_packed": torch.zeros(128, 24, dtype=torch.uint8)}),
        "48 inputs, which blocks of 32 do not divide",
    ),
    "E5M2": (
        "fp8-channel",
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].float().to(torch.float8_e5m2)}),
        "in F8_E5M2, not F8_E4M3",
    ),
    "two global scales": (
        "nvfp4",
        lambda t: t.update({f"{UP}.weight_global_scale": torch.ones(2)}),
        r"shape \(2,\), not \(1,\)",
    ),
    "codes beside": (
        "mxfp4",
        lambda t: t.update({"lm_head.weight": torch.zeros(128, 64).to(torch.float8_e4m3fn)}),
        "lm_head.weight in F8_E4M3, without the scales",
    ),
    "nothing": (
        "mxfp4",
        lambda t: [t.pop(n) for n in list(t) if "weight_packed" in n or "weight_scale" in n],
        "no tensor in it is",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_damaged_tensors_are_named_before_weights_are_read(case, make, monkeypatch):
    kind, edit, words = TENSORS[case]
    folder = make(kind)
    edit_tensors(folder, edit)
    monkeypatch.setattr("hq.precisions.block_float.load_dequantized", None)
    with pytest.raises(HQError, match=words):
        TorchBackend(folder, KINDS[kind].precision, device="cpu")


def test_a_projection_left_dense_is_refused(make):
    """The `ignore` of a config can leave some out."""
    folder = make("fp8-channel")

    def leave(state: dict[str, Tensor]) -> None:
        scale = state.pop(f"{UP}.weight_scale")
        state[f"{UP}.weight"] = (state[f"{UP}.weight"].float() * scale).half()

    edit_tensors(folder, leave)
    with pytest.raises(HQError, match=r"1 of 21 projections are not fp8, 1\.mlp\.up_proj first"):
        TorchBackend(folder, "fp8", device="cpu")


def test_zero_points_of_old_releases_change_nothing(make):
    folder = make("fp8-channel")
    with TorchBackend(folder, "fp8", device="cpu") as backend:
        plain = backend.norms
    zeros = torch.zeros(128, 1).to(torch.float8_e4m3fn)
    edit_tensors(folder, lambda t: t.update({f"{UP}.weight_zero_point": zeros}))
    with TorchBackend(folder, "fp8", device="cpu") as backend:
        np.testing.assert_array_equal(backend.norms, plain)


def test_codes_without_their_config_are_not_weights(make):
    folder = make("fp8-channel")
    edit_config(folder, lambda config: config.pop("quantization_config"))
    with pytest.raises(HQError, match="it does not run as fp8; name its source"):
        TorchBackend(folder, "fp8", device="cpu")


def test_a_quantized_checkpoint_is_no_source(make):
    with pytest.raises(HQError, match="name the dense checkpoint"):
        of_checkpoint(make("fp8-channel"))[0]
