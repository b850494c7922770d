"""Packed checkpoints are read exactly, and rejected with one sentence if they are damaged."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.precisions.packed import UNCHECKED, mark_unchecked, packed_weight, round_to_nearest
from hq.precisions.packed_checkpoints.checkpoint import (
    COMPRESSED,
    PackedCheckpoint,
    compressed_settings,
    packing_scheme,
)
from hq.precisions.packed_checkpoints.layer import CompressedLayer, PackedLayer, PackingScheme
from hq.precisions.packed_checkpoints.layout import unpack
from hq.precisions.packed_checkpoints.quantize import group_size, quantize_checkpoint
from hq.precisions.packed_checkpoints.quantizers import QuantizationJob
from tests import packed_files
from tests.packed_files import ASYMMETRIC, PACKINGS, Packing


def layer(weight: torch.Tensor, packing: Packing) -> tuple[PackedLayer, torch.Tensor]:
    """A packed projection, and what it stands for."""
    parts, dense = packed_files.tensors(weight, packing)
    config = packing.config
    if packing.method == COMPRESSED:
        return CompressedLayer(
            "l", PackingScheme.model_validate(compressed_settings(Path("c"), config)), parts
        ), dense
    return PackedLayer("l", PackingScheme.model_validate(config), parts), dense


@settings(max_examples=50)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(0, 2**32))
def test_codes_are_unpacked_as_they_were_packed(bits, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << bits, (64, 5), generator=generator)
    words = torch.tensor([packed_files.stream(c.tolist(), bits) for c in codes.T]).T.int()
    torch.testing.assert_close(unpack(words, bits, 64).long(), codes)


@pytest.mark.parametrize("packing", [*ASYMMETRIC, *PACKINGS.values()], ids=str)
def test_weights_are_those_that_were_packed(packing):
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
    packed, dense = layer(weight, packing)
    torch.testing.assert_close(packed.dense(), dense, rtol=0, atol=0)
    error = float((dense - weight).norm() / weight.norm())
    assert error < {2: 0.6, 3: 0.3, 4: 0.15, 8: 0.01}[packing.bits]
    assert (packed.d_in, packed.d_out) == (128, 32)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_zero_point_of_zero_is_read_as_zero(bits):
    """Format v1 stores it as -1, which borrows from the zero point beside it."""
    weight = torch.rand(32, 64, generator=torch.Generator().manual_seed(0))
    weight[::2] *= -1  # these rows have the highest zero point
    packed, dense = layer(weight, Packing(bits=bits, sym=False))
    torch.testing.assert_close(packed.dense(), dense, rtol=0, atol=0)


@pytest.mark.parametrize("precision", PACKINGS)
def test_a_whole_model_computes_with_the_packed_weights(precision, packed):
    with TorchBackend(packed(precision), precision, device="cpu") as backend:
        checkpoint = PackedCheckpoint(packed(precision))
        assert len(checkpoint.names) == 21
        for name, module in backend.model.named_modules():
            if name in checkpoint.names:
                torch.testing.assert_close(
                    module.weight, checkpoint.layer(name).dense(), rtol=0, atol=0
                )


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_a_config_of_its_own_is_read(name, tmp_path):
    """auto-gptq and AutoAWQ write one: transformers would load a random model without a word."""
    packing = PACKINGS["awq-4" if name == "quant_config.json" else "gptq-4"]
    packed_files.save("llama", tmp_path / "c", packing)
    config = json.loads((tmp_path / "c/config.json").read_text(encoding="utf-8"))
    stated = config.pop("quantization_config")
    (tmp_path / "c/config.json").write_text(json.dumps(config), encoding="utf-8")
    if name == "quant_config.json":
        stated = {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
    (tmp_path / "c" / name).write_text(json.dumps(stated), encoding="utf-8")
    precision = f"{packing.method}-4"
    with TorchBackend(tmp_path / "c", precision, device="cpu") as backend:
        assert backend.audit()[0].storage.startswith(packing.method)
    with pytest.raises(HQError, match="so it is quantized, and its config"):
        TorchBackend(tmp_path / "c", "fp16", device="cpu")


@pytest.fixture
def damaged(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed("gptq-4"), tmp_path / "damaged"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = dict(load_file(file))
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj"
EDITS = {
    "no scales": (lambda t: t.pop(f"{UP}.scales"), rf"lacks {UP}.scales"),
    "no zeros": (lambda t: t.pop(f"{UP}.qzeros"), rf"lacks {UP}.qzeros"),
    "short scales": (
        lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"][:, :5].clone()}),
        "has the shape",
    ),
    "other codes": (
        lambda t: t.update({f"{UP}.qweight": t[f"{UP}.qweight"][:3].clone()}),
        "has the shape",
    ),
    "other groups": (
        lambda t: t.update({f"{UP}.g_idx": t[f"{UP}.g_idx"] + 1}),
        "names group 1 of 1",
    ),
    "negative groups": (lambda t: t.update({f"{UP}.g_idx": t[f"{UP}.g_idx"] - 1}), "names group"),
    "nan": (lambda t: t[f"{UP}.scales"].fill_(float("nan")), "not finite"),
    "no norm": (lambda t: t.pop("model.norm.weight"), "lacks 1 weights"),
    "nothing packed": (
        lambda t: [
            t.pop(k) for k in list(t) if k.endswith(("qweight", "qzeros", "scales", "g_idx"))
        ],
        "no tensor in it is packed",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_damaged_tensors_are_named(edit, damaged):
    change(damaged, EDITS[edit][0])
    with pytest.raises(HQError, match=EDITS[edit][1]):
        TorchBackend(damaged, "gptq-4", device="cpu")


CONFIGS = {
    "bits": ({"bits": 8}, "does not run as gptq-4: .*gptq-8"),
    "group": ({"group_size": 32}, "has the shape"),
    "method": ({"quant_method": "awq", "checkpoint_format": "gemm"}, r"as gptq-4: .* \(awq-4"),
    "format": ({"checkpoint_format": "marlin"}, "format 'marlin', which hq does not read"),
    "no bits": ({"bits": None}, "cannot be used: bits"),
    "five bits": ({"bits": 5}, "cannot be used: bits"),
    "unknown method": ({"quant_method": "hqq"}, "cannot be used: quant_method"),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(config, damaged):
    file = damaged / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["quantization_config"] |= CONFIGS[config][0]
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(HQError, match=CONFIGS[config][1]):
        TorchBackend(damaged, "gptq-4", device="cpu")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_weights_are_refused(share, damaged):
    file = damaged / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(HQError, match="not a complete safetensors file"):
        TorchBackend(damaged, "gptq-4", device="cpu")


def test_broken_json_is_refused(damaged):
    (damaged / "config.json").unlink()
    (damaged / "quantize_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(HQError, match="cannot be read"):
        packing_scheme(damaged)


def test_a_dense_checkpoint_is_not_packed(checkpoint):
    with pytest.raises(HQError, match="does not say that it is quantized"):
        TorchBackend(checkpoint("llama"), "gptq-4", device="cpu")


@pytest.mark.parametrize(
    ("asked", "has"),
    [
        *(("gptq-8", "gptq-4"), ("awq-4", "gptq-4"), ("gptq-4", "awq-4")),
        *(("compressed-4", "compressed-8"), ("gptq-4", "compressed-4"), ("compressed-4", "awq-4")),
    ],
)
def test_another_precision_is_not_reported_under_its_name(asked, has, packed):
    with pytest.raises(HQError, match=rf"does not run as {asked}: name its own precision \({has}"):
        TorchBackend(packed(has), asked, device="cpu")


@pytest.mark.parametrize(
    ("precision", "bits"),
    [
        *(("gptq-4", 4.31), ("gptq-8", 8.38), ("gptq-3", 3.3), ("awq-4", 4.31)),
        *(("compressed-4", 4.27), ("compressed-8", 8.27)),
    ],
)
def test_packed_weights_count_as_they_ship(precision, bits, packed):
    """Codes, and a scale and a zero point a group of 64; GPTQ's order of inputs comes on top."""
    checkpoint = PackedCheckpoint(packed(precision))
    layers = list(checkpoint.layers())
    with TorchBackend(packed(precision), precision, device="cpu") as backend:
        for row in backend.audit():
            assert row.storage == str(checkpoint.scheme)
            assert bits - 0.02 <= row.bits_per_weight <= bits + 1.02
        rest = sum(2 * tensor.numel() for tensor in checkpoint.others().values())
        assert 0 <= backend.weight_bytes() - rest - sum(one.nbytes for one in layers) < 1024


def test_packed_weights_are_recorded_beside_the_model(packed, checkpoint):
    """Modules get no attributes, and the records go with the model."""
    with TorchBackend(checkpoint("llama"), device="cpu") as dense:
        attributes = set(vars(dense.downs[0]))
    with TorchBackend(packed("gptq-4"), "gptq-4", device="cpu") as backend:
        known = {m for m in backend.model.modules() if packed_weight(m) is not None}
        names = {name for name, m in backend.model.named_modules() if m in known}
        assert names == set(PackedCheckpoint(packed("gptq-4")).names)
        assert {name for m in known for name in vars(m)} == attributes
        with TorchBackend(packed("gptq-4"), "gptq-4", device="cpu") as other:
            mark_unchecked(other.model)
            assert {row.storage for row in other.audit()} == {f"gptq 4 bit g64 sym, {UNCHECKED}"}
            assert {row.storage for row in backend.audit()} == {"gptq 4 bit g64 sym"}
        weights = [weakref.ref(m) for m in known]
        del known
    gc.collect()
    assert all(weight() is None for weight in weights)


def test_group_sizes():
    assert group_size([4096, 11008]) == 128
    assert group_size([576, 1536]) == 64
    with pytest.raises(HQError, match="do not divide"):
        group_size([100])


@pytest.mark.parametrize("sym", [True, False])
def test_rounding_is_nearest(sym):
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    errors = [
        float((round_to_nearest(weight, bits, 64, sym) - weight).abs().max())
        for bits in (2, 3, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    groups = weight.view(8, 2, 64)
    spread = (2 * groups.abs().amax(-1) if sym else groups.amax(-1) - groups.amin(-1)).max() / 255
    assert errors[-1] <= float(spread) * (1 if sym else 0.75)
    with pytest.raises(HQError, match="do not divide"):
        round_to_nearest(weight, 4, 60, sym)


def test_making_without_the_library_names_the_extra(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setattr("hq.precisions.packed_checkpoints.quantize.find_spec", lambda _: None)
    job = QuantizationJob(
        source=checkpoint("llama"), method="gptq", bits=4, group_size=64, sym=True, texts=((1, 2),)
    )
    with pytest.raises(HQError, match=r"pip install 'hq\[gptq\]'"):
        quantize_checkpoint(job, tmp_path / "made")
    assert not (tmp_path / "made").exists()
