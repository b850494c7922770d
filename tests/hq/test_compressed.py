"""Checkpoints of compressed-tensors: read as its own library reads them, or refused in a sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint
from tests import packed_files
from tests.packed_files import Packing

SCHEMES = [
    Packing("compressed-tensors", bits, group, sym)
    for bits in (4, 8)
    for group in (32, 64)
    for sym in (True, False)
]


@pytest.mark.parametrize("packing", SCHEMES, ids=str)
def test_weights_are_those_of_the_definition_and_of_the_library(packing, tmp_path):
    source = tmp_path / "source"
    packed_files.tiny.save("llama", source)
    packed_files.save_packed(source, tmp_path / "c", packing)
    weights = load_file(source / "model.safetensors")
    for one in PackedCheckpoint(tmp_path / "c").layers():
        parts, dense = packed_files.tensors(weights[f"{one.name}.weight"], packing)
        torch.testing.assert_close(one.dense(), dense, rtol=0, atol=0)
        torch.testing.assert_close(library_dense(parts, packing), dense, rtol=0, atol=0)


def library_dense(parts: dict[str, torch.Tensor], packing: Packing) -> torch.Tensor:
    """What compressed-tensors makes of the parts, in float32."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    (group,) = packing.config["config_groups"].values()
    found = PackedQuantizationCompressor.decompress(
        parts | {"weight_scale": parts["weight_scale"].float()},
        QuantizationScheme.model_validate(group),
    )
    return found["weight"]


def test_a_row_can_be_one_group(packed, tmp_path):
    folder = Path(shutil.copytree(packed("compressed-8"), tmp_path / "c"))
    whole = dict(load_file(folder / "model.safetensors"))
    for name in whole:
        if name.endswith("weight_scale"):
            whole[name] = whole[name][:, :1].clone()
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    weights(folder, strategy="channel", group_size=None)
    layer = PackedCheckpoint(folder).layer("model.layers.0.mlp.down_proj")
    assert str(layer.scheme) == "compressed-tensors 8 bit one group sym"
    codes = layer.dense() / layer.tensors["weight_scale"].float()
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)


@pytest.fixture
def damaged(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed("compressed-4"), tmp_path / "damaged"))


def config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["quantization_config"] |= changes
    file.write_text(json.dumps(values), encoding="utf-8")


def weights(folder: Path, **changes: object) -> None:
    group = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"][
        "config_groups"
    ]
    group["group_0"]["weights"] |= changes
    config(folder, config_groups=group)


ACTIVATIONS = {"targets": ["Linear"], "weights": {}, "input_activations": {"num_bits": 8}}
CONFIGS = {
    "format": ({"format": "float-quantized"}, "is in the format 'float-quantized'"),
    "no groups": ({"config_groups": {}}, "has 0 groups"),
    "groups are a list": ({"config_groups": [1]}, "has no groups"),
    "a preset": ({"config_groups": {"W4A16": ["Linear"]}}, "names the scheme"),
    "activations": ({"config_groups": {"g": ACTIVATIONS}}, "quantizes input activations"),
    "rotated at run time": ({"transform_config": {"config_groups": {}}}, "has a transform_config"),
    "sparse": ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "has a sparsity_config"),
    "kv cache": ({"kv_cache_scheme": {"num_bits": 8}}, "has a kv_cache_scheme"),
}
WEIGHTS = {
    "bits": ({"num_bits": 8}, r"does not run as compressed-4: .* \(compressed-8\)"),
    "no bits": ({"num_bits": None}, "cannot be used: bits"),
    "floats": ({"type": "float"}, "has float weights"),
    "blocks": ({"strategy": "block"}, "weights by block"),
    "group": ({"group_size": 32}, "has the shape"),
    "no group": ({"group_size": None}, "cannot be used: group_size"),
    "odd group": ({"group_size": 48}, "does not fill|has the shape"),
    "asymmetric": ({"symmetric": False}, "lacks .*weight_zero_point"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_of_something_else_is_refused(case, damaged):
    changes, words = CONFIGS[case]
    config(damaged, **changes)
    with pytest.raises(HQError, match=words):
        TorchBackend(damaged, "compressed-4", device="cpu")


def test_what_old_releases_add_changes_nothing(damaged):
    config(damaged, sparsity_config={"format": "dense"}, version="0.8.0")
    tensors = dict(load_file(damaged / "model.safetensors"))
    plain = PackedCheckpoint(damaged).layer(UP).dense()
    tensors[f"{UP}.weight_zero_point"] = torch.zeros(128, 1, dtype=torch.int8)
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(PackedCheckpoint(damaged).layer(UP).dense(), plain, rtol=0, atol=0)


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_scheme_that_does_not_fit_is_refused(case, damaged):
    changes, words = WEIGHTS[case]
    weights(damaged, **changes)
    with pytest.raises(HQError, match=words):
        TorchBackend(damaged, "compressed-4", device="cpu")


UP = "model.layers.1.mlp.up_proj"
EDITS = {
    "no scales": (lambda t: t.pop(f"{UP}.weight_scale"), f"lacks {UP}.weight_scale"),
    "another shape": (lambda t: t[f"{UP}.weight_shape"].add_(1), "does not fill complete words"),
    "no codes": (lambda t: t.pop(f"{UP}.weight_packed"), "lacks 1 weights|are not compressed-4"),
    "another order": (
        lambda t: t.update({f"{UP}.weight_g_idx": torch.ones(64, dtype=torch.int32)}),
        "inputs in another order",
    ),
    "nan": (lambda t: t[f"{UP}.weight_scale"].fill_(float("nan")), "not finite"),
}


@pytest.mark.parametrize("case", EDITS)
def test_damaged_tensors_are_named(case, damaged):
    file = damaged / "model.safetensors"
    tensors = dict(load_file(file))
    EDITS[case][0](tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(HQError, match=EDITS[case][1]):
        TorchBackend(damaged, "compressed-4", device="cpu")


def test_a_projection_left_dense_is_refused(damaged):
    """llm-compressor's `ignore` can leave some out."""
    file = damaged / "model.safetensors"
    tensors = dict(load_file(file))
    dense = PackedCheckpoint(damaged).layer(UP).dense().contiguous()
    for name in [n for n in tensors if n.startswith(f"{UP}.")]:
        del tensors[name]
    save_file(tensors | {f"{UP}.weight": dense}, file, metadata={"format": "pt"})
    with pytest.raises(HQError, match=r"1 of 21 projections are not compressed-4, 1\.mlp\.up_proj"):
        TorchBackend(damaged, "compressed-4", device="cpu")
