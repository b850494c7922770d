"""What fine-tuning leaves: a PEFT folder, a merged checkpoint and a GGUF adapter agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hq.errors import HQError
from hq.models.checkpoint import (
    architecture_at,
    checkpoint_identity,
    read_tensor,
    tensors_of,
)
from hq.precisions.base import from_pretrained
from hq.tuning.adapter import attach, deltas, read_adapter, target_names, write_adapter
from hq.tuning.merging import PROVENANCE_FILE, merge
from tests import tiny

peft = pytest.importorskip("peft")
# PEFT's own warning
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

CPU = torch.device("cpu")
IDS = torch.randint(5, tiny.VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(0))
TARGETS = {"gpt2": ("up", "down"), "opt": ("up", "down")}


def trained(path: Path, family: str) -> dict[str, torch.Tensor]:
    """A LoRA whose B is not zero."""
    model, record = tiny.model(family), architecture_at(path)
    adapter = attach(model, record, TARGETS.get(family, ("gate", "up", "down")), 4, seed=0)
    generator = torch.Generator().manual_seed(2)
    return {
        name: 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapter.tensors().items()
    }


@torch.inference_mode()
def logits(model: torch.nn.Module) -> np.ndarray:
    return model(IDS).logits.float().numpy()


@pytest.mark.parametrize("family", [*tiny.FAMILIES])
def test_peft_reads_the_adapter_and_the_merged_checkpoint_computes_the_same(
    family, checkpoint, tmp_path
):
    path = checkpoint(family)
    adapter, record = trained(path, family), architecture_at(path)
    write_adapter(tmp_path / "adapter", adapter, record.transposed, path.name)
    plain = from_pretrained(path, CPU, dtype=torch.float32)
    base = logits(plain)
    adapted = logits(peft.PeftModel.from_pretrained(plain, tmp_path / "adapter"))
    merge(path, adapter, tmp_path / "merged", {"arm": "test"})
    merged = logits(from_pretrained(tmp_path / "merged", CPU, dtype=torch.float32))
    assert np.abs(adapted - base).max() > 0.1
    # The merged weights are rounded to FP16, the type of the checkpoint.
    np.testing.assert_allclose(merged, adapted, atol=0.02 * np.abs(adapted - base).max())


def test_only_the_targets_change_and_each_is_rounded_once(checkpoint, tmp_path):
    path = checkpoint("llama")
    adapter = trained(path, "llama")
    merge(path, adapter, tmp_path / "merged", {"arm": "test"})
    before, after = tensors_of(path), tensors_of(tmp_path / "merged")
    products = {f"{name}.weight": b @ a for name, a, b in deltas(adapter)}
    assert before.keys() == after.keys()
    for name, stored in before.items():
        old = read_tensor(stored.file, name)
        new = read_tensor(after[name].file, name)
        expected = (old.float() + products[name]).half() if name in products else old
        assert torch.equal(new, expected)
    assert len(products) == 3 * tiny.LAYERS
    config = (tmp_path / "merged" / "config.json").read_bytes()
    assert config == (path / "config.json").read_bytes()
    stated = json.loads((tmp_path / "merged" / PROVENANCE_FILE).read_text(encoding="utf-8"))
    assert stated == {"arm": "test"}
    identity, base = checkpoint_identity(tmp_path / "merged"), checkpoint_identity(path)
    assert identity.fingerprint != base.fingerprint
    assert identity.norm_digest == base.norm_digest


def test_equal_adapters_are_equal_files_and_are_read_again(checkpoint, tmp_path):
    adapter = trained(checkpoint("llama"), "llama")
    for name in ("one", "two"):
        write_adapter(tmp_path / name, adapter, False, "base")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    again = read_adapter(tmp_path / "one")
    assert all(torch.equal(again[name], tensor) for name, tensor in adapter.items())
    with pytest.raises(HQError, match="has no adapter"):
        read_adapter(tmp_path)


def test_an_adapter_that_does_not_match_is_refused_and_nothing_is_written(checkpoint, tmp_path):
    path, wide = checkpoint("llama"), checkpoint("gemma2")
    adapter = trained(path, "llama")
    other = {n.replace(".layers.2.", ".layers.7."): t for n, t in adapter.items()}
    with pytest.raises(HQError, match=r"layers\.7\.mlp\.\w+, which .* does not have"):
        merge(path, other, tmp_path / "merged", {})
    cut = {n: t[:, :32] if "lora_A" in n else t for n, t in adapter.items()}
    with pytest.raises(HQError, match="of shape"):
        merge(wide, cut, tmp_path / "merged", {})
    half = {
        n: t for n, t in adapter.items() if not n.endswith("layers.0.mlp.up_proj.lora_B.weight")
    }
    with pytest.raises(HQError, match="no lora_B"):
        merge(path, half, tmp_path / "merged", {})
    huge = {n: 1e4 * t for n, t in adapter.items()}
    with pytest.raises(HQError, match="overflows"):
        merge(path, huge, tmp_path / "merged", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_llama_cpp_loads_the_gguf_adapter_and_computes_the_merged_model(family, tmp_path):
    pytest.importorskip("llama_cpp")
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.gguf.file import GGUFFile
    from hq.gguf.write import write_gguf
    from hq.tuning.gguf import write_gguf_lora
    from tests.hq.test_lora_gguf import adapted, scaled

    file = tiny.save_gguf(family, tmp_path / f"{family}-f32.gguf", "f32")
    path = next(p for p in tmp_path.iterdir() if p.is_dir())
    adapter, record = trained(path, family), architecture_at(path)
    write_gguf_lora(GGUFFile(file).architecture, family, record, adapter, tmp_path / "adapter.gguf")
    # Float32, so that the merged weights are not rounded.
    single = tmp_path / "single"
    from_pretrained(path, CPU, dtype=torch.float32).save_pretrained(single)
    for extra in path.glob("*token*"):
        (single / extra.name).write_bytes(extra.read_bytes())
    merge(single, adapter, tmp_path / "merged", {})
    merged = tmp_path / "merged.gguf"
    write_gguf(tmp_path / "merged", merged, "f32", checkpoint_identity(tmp_path / "merged"))
    with LlamaBackend(file, "gguf-f32") as backend:
        plain = scaled(backend, {})
        found = adapted(backend, tmp_path / "adapter.gguf", 1.0)
        none = adapted(backend, tmp_path / "adapter.gguf", 0.0)
    with LlamaBackend(merged, "gguf-f32") as backend:
        expected = scaled(backend, {})
    assert np.abs(expected - plain).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    np.testing.assert_allclose(none, plain, atol=1e-5 * np.abs(plain).max())


def test_targets_are_named_layer_by_layer(checkpoint):
    model, record = tiny.model("phi3"), architecture_at(checkpoint("phi3"))
    names = target_names(model, record, ("gate", "up", "down"))
    assert len(names) == 2 * tiny.LAYERS  # gate and up are one projection
    assert names[0].startswith("model.layers.0.")
