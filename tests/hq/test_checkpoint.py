"""Checkpoints: fingerprints depend on every bit and not on file layout; damage is reported."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.checkpoint import (
    checkpoint_identity,
    end_tokens,
    file_digests,
    fingerprint,
    resolve,
    text_config,
)
from hq.neurons.neuron_set import ModelIdentity
from tests import tiny

Checkpoint = Callable[[str], Path]


@pytest.fixture
def copied(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A llama checkpoint to damage."""
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "copied"))


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def test_identity_tells_family_and_shape(family: str, checkpoint: Checkpoint) -> None:
    found = checkpoint_identity(checkpoint(family))
    assert (found.n_layers, found.d_ff) == (tiny.LAYERS, tiny.D_FF)
    assert found.architecture == {"gemma3": "gemma3_text"}.get(family, family)
    assert found.name == family


@pytest.mark.parametrize(
    ("stated", "tokens"),
    [('{"eos_token_id": 2}', {2}), ('{"eos_token_id": [2, 7]}', {2, 7}), ("{}", set())],
)
def test_the_models_own_end_tokens(stated: str, tokens: set[int], tmp_path: Path) -> None:
    assert end_tokens(tmp_path) == set()
    (tmp_path / "generation_config.json").write_text(stated, encoding="utf-8")
    assert end_tokens(tmp_path) == tokens


@pytest.mark.parametrize("stated", ["{", '{"eos_token_id": "</s>"}'])
def test_end_tokens_that_are_none(stated: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(stated, encoding="utf-8")
    with pytest.raises(HQError, match=r"generation_config\.json cannot be read"):
        end_tokens(tmp_path)


def test_a_config_has_a_digest_of_its_own(copied: Path) -> None:
    before, weights_before = file_digests(copied, ("config.json", "none")), fingerprint(copied)
    assert before.keys() == {"config.json"}
    path = copied / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"rms_norm_eps": 0.5}),
        encoding="utf-8",
    )
    assert file_digests(copied, ("config.json",)) != before
    assert fingerprint(copied) == weights_before


def test_gpt2_without_n_inner_is_four_times_as_wide(tmp_path: Path) -> None:
    hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    assert checkpoint_identity(tmp_path).d_ff == 64


def test_resharding_keeps_the_fingerprint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    whole = checkpoint("llama")
    model = hf.AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float16)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path) == fingerprint(whole)


def test_file_metadata_and_order_keep_the_fingerprint(copied: Path) -> None:
    before = fingerprint(copied)
    tensors = load_file(weights(copied))
    reverse = dict(sorted(tensors.items(), reverse=True))
    save_file(reverse, weights(copied), metadata={"made by": "someone else"})
    assert fingerprint(copied) == before


def test_one_bit_changes_the_fingerprint(copied: Path) -> None:
    before = fingerprint(copied)
    with open(weights(copied), "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert fingerprint(copied) != before


def test_a_renamed_tensor_changes_the_fingerprint(copied: Path) -> None:
    before = fingerprint(copied)
    tensors = load_file(weights(copied))
    tensors["other.name"] = tensors.pop(min(tensors))
    save_file(tensors, weights(copied))
    assert fingerprint(copied) != before


def test_another_shape_of_the_same_bytes_changes_the_fingerprint(copied: Path) -> None:
    before = fingerprint(copied)
    tensors = load_file(weights(copied))
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name].reshape(64, -1).contiguous()
    save_file(tensors, weights(copied))
    assert fingerprint(copied) != before


def test_a_local_folder_resolves_to_itself(copied: Path) -> None:
    assert resolve(str(copied)) == copied


def test_a_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(HQError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_pickled_weights_are_refused(copied: Path) -> None:
    torch.save(load_file(weights(copied)), copied / "pytorch_model.bin")
    weights(copied).unlink()
    with pytest.raises(HQError, match=r"no \*\.safetensors file: convert"):
        resolve(str(copied))


def test_a_name_that_is_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    with pytest.raises(HQError, match="neither a local folder nor a hub id"):
        resolve(str(tmp_path / "no such" / "model"))


def test_a_truncated_file_is_named(copied: Path) -> None:
    with open(weights(copied), "r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    with pytest.raises(HQError, match=r"model\.safetensors is not a complete .*copy it again"):
        fingerprint(copied)


HEADERS = [b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"a": 1}', b'{"a": {"dtype": "F16"}}']
HEADERS += [
    json.dumps({"a": {"dtype": "F16", "shape": [1], "data_offsets": offsets}}).encode()
    for offsets in ([0], ["0", "2"], [-8, 0], [2, 0], None)
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_garbage_header_is_named(copied: Path, header: bytes) -> None:
    weights(copied).write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    with pytest.raises(HQError, match=r"model\.safetensors .*copy it again"):
        fingerprint(copied)


@pytest.mark.parametrize("content", [b"", b"\x01\x02", struct.pack("<Q", 1 << 40) + b"{}"])
def test_a_file_too_short_for_its_header_is_named(copied: Path, content: bytes) -> None:
    weights(copied).write_bytes(content)
    with pytest.raises(HQError, match=r"model\.safetensors .*copy it again"):
        fingerprint(copied)


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", '{"model_type": "no such"}'])
def test_an_unreadable_config_is_named(copied: Path, config: str) -> None:
    (copied / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(HQError, match=r"config\.json cannot be read"):
        text_config(copied)


def test_a_family_that_hq_does_not_know_is_refused_before_loading(copied: Path) -> None:
    hf.MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1).save_pretrained(copied)
    with pytest.raises(HQError, match=r"'mamba', and cannot find its neurons: .* carry a state"):
        TorchBackend(copied)


def test_a_missing_weight_is_refused(copied: Path) -> None:
    tensors = load_file(weights(copied))
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, weights(copied), metadata={"format": "pt"})
    with pytest.raises(HQError, match=r"lacks 1 .*model\.layers\.1\.mlp\.down_proj\.weight"):
        TorchBackend(copied, device="cpu")


def test_a_missing_shard_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float16)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    min(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(HQError, match="is missing, which"):
        TorchBackend(tmp_path, device="cpu")


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(
        json.dumps(config | {"intermediate_size": 192}), encoding="utf-8"
    )
    with pytest.raises(HQError, match="cannot be loaded"):
        TorchBackend(copied, device="cpu")


def test_a_damaged_file_is_refused_even_when_its_identity_is_known(copied: Path) -> None:
    known: ModelIdentity = checkpoint_identity(copied)
    with open(weights(copied), "r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    with pytest.raises(HQError, match="not a complete safetensors file"):
        TorchBackend(copied, device="cpu", model_identity=known)
