"""Norm digests: a checkpoint and the GGUF files made from it have the same one."""

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from hq.gguf.file import GGUFFile
from hq.models.architectures import RECORDS
from hq.models.checkpoint import checkpoint_identity
from hq.models.norm_digest import norm_digest
from tests import tiny
from tests.hq import gguf_files

Checkpoint = Callable[[str], Path]

ARCHITECTURE = {"mistral": "llama", "gemma3_text": "gemma3"}
CONVERTED = [family for family in tiny.FAMILIES if family != "opt"]


def converted(family: str, checkpoint: Path) -> dict[str, np.ndarray]:
    """A checkpoint's weights as the gguf package names and stores them."""
    architecture = ARCHITECTURE.get(family, family)
    (enum,) = (a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(enum, tiny.LAYERS)
    weights = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if "vision" in name or "projector" in name:
            continue
        known = names.get_name(re.sub(r"language_model\.", "", name), (".weight", ".bias"))
        weight = tensor.float().numpy()
        if architecture == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight", name):
            weight = weight.T
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            weight = weight + np.float32(1)
        weights[known] = np.ascontiguousarray(weight)
    return weights


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("family", CONVERTED)
def test_a_checkpoint_and_its_gguf_have_the_same_digest(
    family, kind, checkpoint: Checkpoint, tmp_path
):
    weights = converted(family, checkpoint(family))
    architecture = ARCHITECTURE.get(family, family)
    path = gguf_files.write(tmp_path / "a.gguf", kind, weights=weights, architecture=architecture)
    converted_identity, source = GGUFFile(path).identity, checkpoint_identity(checkpoint(family))
    assert converted_identity.norm_digest == source.norm_digest
    assert re.fullmatch("[0-9a-f]{16}", converted_identity.norm_digest)
    assert (converted_identity.n_layers, converted_identity.d_ff) == (source.n_layers, source.d_ff)
    assert converted_identity.fingerprint.startswith("gguf:")


def test_every_family_has_a_digest_of_its_own(checkpoint: Checkpoint):
    digests = [checkpoint_identity(checkpoint(family)).norm_digest for family in tiny.FAMILIES]
    assert digests.pop(list(tiny.FAMILIES).index("opt")) == ""
    assert "" not in digests
    same_weights = {"llama", "mistral"}  # one seed, one shape
    assert len(set(digests)) >= len(digests) - len(same_weights)


def test_every_norm_changes_the_digest(checkpoint: Checkpoint, tmp_path):
    folder = tiny.save("gemma3_text", tmp_path / "copy")
    path, before = folder / "model.safetensors", checkpoint_identity(folder).norm_digest
    tensors = load_file(path)
    norms = [name for name in tensors if name.endswith("norm.weight")]
    assert len(norms) == 6 * tiny.LAYERS + 1
    for name in norms:
        changed = tensors[name].clone()
        changed[3] += 0.5
        save_file(tensors | {name: changed}, path, metadata={"format": "pt"})
        assert checkpoint_identity(folder).norm_digest != before, name
    others = {name: t for name, t in tensors.items() if name not in norms}
    save_file(tensors | {n: -t for n, t in others.items()}, path, metadata={"format": "pt"})
    assert checkpoint_identity(folder).norm_digest == before
    del tensors[norms[0]]
    save_file(tensors, path, metadata={"format": "pt"})
    assert checkpoint_identity(folder).norm_digest == ""


def test_sharding_and_dtype_keep_the_digest(checkpoint: Checkpoint, tmp_path):
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float16)
    before = checkpoint_identity(checkpoint("llama")).norm_digest
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    model.float().save_pretrained(tmp_path / "float32")
    assert (
        checkpoint_identity(tmp_path / "shards").norm_digest
        == checkpoint_identity(tmp_path / "float32").norm_digest
        == before
    )
    model.bfloat16().save_pretrained(tmp_path / "bf16")
    model.float().save_pretrained(tmp_path / "rounded")
    assert (
        checkpoint_identity(tmp_path / "bf16").norm_digest
        == checkpoint_identity(tmp_path / "rounded").norm_digest
        != before
    )


def test_the_digest_depends_on_order_and_lengths_but_not_on_rounding_to_fp16():
    ones, more = np.ones(3, dtype=np.float32), np.full(2, 2, dtype=np.float32)
    assert norm_digest([ones, more]) != norm_digest([more, ones])
    assert norm_digest([ones, ones]) != norm_digest([np.ones(6, dtype=np.float32)])
    assert (
        norm_digest([ones])
        == norm_digest([ones * np.float32(1 + 1e-5)])
        == norm_digest([ones.astype(np.float16)])
    )
    assert norm_digest([ones * 1e6]) == norm_digest([ones * 1e7])


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.layers.12.input_layernorm.weight", "blk.12.attn_norm.weight"),
        ("model.language_model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("language_model.model.norm.weight", "output_norm.weight"),
        ("norm.weight", "output_norm.weight"),
        ("layers.3.input_layernorm.weight", "blk.3.attn_norm.weight"),
        ("model.layers.0.input_layernorm.bias", None),
        ("model.layers.0.mlp.down_proj.weight", None),
        ("model.vision_tower.layers.0.input_layernorm.weight", None),
        ("model.vision_tower.norm.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_only_the_decoders_norms_have_a_name(name, canonical):
    norms = RECORDS["llama"].norms
    assert norms is not None
    assert norms.canonical(name) == canonical
