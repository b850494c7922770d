"""PEFT folders, read by PEFT itself: the same logits as scaling at run time, in every family."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from hq.suppress.lora.peft import CONFIG_FILE, WEIGHTS_FILE, write_peft_adapter
from tests import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's

NEURONS = [(0, 3), (0, 40), (0, 127), (2, 7)]  # of ranks 3 and 1, and none in layer 1
IDS = torch.randint(5, tiny.VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(0))


def made(path: Path, factors: Mapping[tuple[int, int], float], into: Path) -> Path:
    """The adapter of a checkpoint."""
    write_peft_adapter(path, checkpoint_identity(path), factors, into)
    return into


@torch.inference_mode()
def logits(model: Any) -> np.ndarray:
    return model(IDS).logits.numpy()


def test_every_family_computes_what_scaling_at_run_time_does(family, checkpoint, tmp_path):
    path, factors = checkpoint(family), dict.fromkeys(NEURONS, 0.3)
    folder = made(path, factors, tmp_path / "adapter")
    with TorchBackend(path, device="cpu") as backend:
        plain = logits(backend.model)
        with backend.scale(factors):
            expected = logits(backend.model)
        found = logits(peft.PeftModel.from_pretrained(backend.model, folder))
    assert np.abs(expected - plain).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("start", [0.0, 0.3, 2.0])
def test_a_scale_moves_alpha_on_a_line(start, checkpoint, tmp_path):
    path = checkpoint("llama")
    folder = made(path, dict.fromkeys(NEURONS, start), tmp_path / "adapter")
    with TorchBackend(path, device="cpu") as backend:
        plain, expected, found = logits(backend.model), {}, {}
        scales = (-0.5, 0.5, 1.0)
        for scale in scales:
            with backend.scale(dict.fromkeys(NEURONS, 1 + scale * (start - 1))):
                expected[scale] = logits(backend.model)
        adapted = peft.PeftModel.from_pretrained(backend.model, folder)
        for scale in (0.0, *scales):
            with peft.helpers.rescale_adapter_scale(adapted, scale):
                found[scale] = logits(adapted)
    np.testing.assert_array_equal(found[0.0], plain)
    for scale in scales:
        np.testing.assert_allclose(found[scale], expected[scale], atol=2e-5)


def test_transformers_loads_it_by_itself(checkpoint, tmp_path):
    path = checkpoint("qwen3")
    folder = made(path, dict.fromkeys(NEURONS, 0.0), tmp_path / "adapter")
    with TorchBackend(path, device="cpu") as backend:
        with backend.scale(dict.fromkeys(NEURONS, 0.0)):
            expected = logits(backend.model)
        backend.model.load_adapter(str(folder))
        np.testing.assert_allclose(logits(backend.model), expected, atol=2e-5)


def test_merged_it_is_the_checkpoint_with_scaled_columns(checkpoint, tmp_path):
    path = checkpoint("gpt2")
    folder = made(path, {(0, 3): 0.5}, tmp_path / "adapter")
    with TorchBackend(path, device="cpu") as backend:
        column = backend.model.transformer.h[0].mlp.c_proj.weight[3].clone()
        merged = peft.PeftModel.from_pretrained(backend.model, folder).merge_and_unload()
        found = merged.transformer.h[0].mlp.c_proj.weight
        torch.testing.assert_close(found[3], 0.5 * column)


def test_ranks_differ_by_layer_and_the_scale_is_one_without_patterns_too(checkpoint, tmp_path):
    folder = made(checkpoint("llama"), dict.fromkeys(NEURONS, 0.0), tmp_path / "adapter")
    config = peft.LoraConfig.from_pretrained(folder)
    first, last = (f"model.layers.{layer}.mlp.down_proj" for layer in (0, 2))
    assert config.target_modules == {first, last}
    assert (config.r, config.lora_alpha) == (3, 3)
    assert config.rank_pattern == config.alpha_pattern == {last: 1}
    assert config.base_model_name_or_path == str(checkpoint("llama"))
    shapes = {name: tuple(t.shape) for name, t in load_file(folder / WEIGHTS_FILE).items()}
    assert shapes == {
        f"base_model.model.{name}.lora_{part}.weight": shape
        for name, rank in ((first, 3), (last, 1))
        for part, shape in (("A", (rank, tiny.D_FF)), ("B", (64, rank)))
    }


def test_b_holds_the_checkpoint_s_columns_and_a_one_number_a_neuron(checkpoint, tmp_path):
    path = checkpoint("llama")
    folder = made(path, {(1, 5): 0.25, (1, 90): 3.0}, tmp_path / "adapter")
    prefix = "base_model.model.model.layers.1.mlp.down_proj"
    tensors = load_file(folder / WEIGHTS_FILE)
    down = load_file(path / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    torch.testing.assert_close(
        tensors[f"{prefix}.lora_B.weight"], down[:, [5, 90]].float(), rtol=0, atol=0
    )
    a = tensors[f"{prefix}.lora_A.weight"]
    assert {tuple(place): a[*place].item() for place in a.nonzero().tolist()} == {
        (0, 5): -0.75,
        (1, 90): 2.0,
    }
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as opened:
        assert opened.metadata()["hq.source.fingerprint"] == checkpoint_identity(path).fingerprint


def test_a_checkpoint_that_names_its_tensors_without_a_prefix(checkpoint, tmp_path):
    """As GPT-2's own does."""
    path, bare = checkpoint("gpt2"), tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((path / "config.json").read_bytes())
    tensors = load_file(path / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(renamed, bare / "model.safetensors", {"format": "pt"})
    factors = dict.fromkeys(NEURONS, 0.0)
    one, other = made(path, factors, tmp_path / "one"), made(bare, factors, tmp_path / "other")
    expected, found = load_file(one / WEIGHTS_FILE), load_file(other / WEIGHTS_FILE)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


# --- what is refused


def test_a_quantized_checkpoint_is_refused(packed, tmp_path):
    path = packed("gptq-4")
    with pytest.raises(HQError, match="is quantized, and a PEFT adapter is exact on dense weights"):
        made(path, dict.fromkeys(NEURONS, 0.0), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_a_layer_is_refused(checkpoint, tmp_path):
    path, part = checkpoint("llama"), tmp_path / "part"
    part.mkdir()
    (part / "config.json").write_bytes((path / "config.json").read_bytes())
    tensors = load_file(path / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if "layers.2." not in name}
    save_file(rest, part / "model.safetensors")
    with pytest.raises(HQError, match=r"lacks layers\.2\.mlp\.down_proj\.weight"):
        made(part, dict.fromkeys(NEURONS, 0.0), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_failure_leaves_nothing_behind(checkpoint, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hq.storage.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        made(checkpoint("llama"), dict.fromkeys(NEURONS, 0.0), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_the_same_adapter_has_the_same_bytes(checkpoint, tmp_path):
    """Six times: safetensors itself would order two keys of metadata by chance."""
    folders = [
        made(checkpoint("llama"), dict.fromkeys(NEURONS, 0.3), tmp_path / str(i)) for i in range(6)
    ]
    assert len({(folder / WEIGHTS_FILE).read_bytes() for folder in folders}) == 1
    with safe_open(folders[0] / WEIGHTS_FILE, framework="pt") as file:
        fingerprint = checkpoint_identity(checkpoint("llama")).fingerprint
        assert file.metadata() == {"format": "pt", "hq.source.fingerprint": fingerprint}
    expected = load_file(folders[0] / WEIGHTS_FILE)
    plain = tmp_path / "plain.safetensors"
    save_file(expected, plain)
    stored = plain.read_bytes()
    assert (
        (folders[0] / WEIGHTS_FILE)
        .read_bytes()
        .endswith(stored[8 + int.from_bytes(stored[:8], "little") :])
    )


def test_the_config_is_json_that_a_person_can_read(checkpoint, tmp_path):
    folder = made(checkpoint("opt"), {(1, 5): 0.0}, tmp_path / "adapter")
    said = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    assert said["target_modules"] == ["model.decoder.layers.1.fc2"]
    assert said["rank_pattern"] == said["alpha_pattern"] == {}
    assert {path.name for path in folder.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
