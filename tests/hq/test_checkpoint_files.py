"""The files of a folder that make up the model are those that transformers loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.gguf.write import write_gguf
from hq.models.checkpoint import (
    INDEX_FILE,
    checkpoint_identity,
    fingerprint,
    resolve,
    tensor_files,
    weight_files,
)
from hq.models.ffn_weights import of_checkpoint
from tests import tiny, tiny_tokenizers

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's

Checkpoint = Callable[[str], Path]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def sharded(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A llama checkpoint in shards, with an index."""
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert (tmp_path / "sharded" / INDEX_FILE).is_file()
    return tmp_path / "sharded"


@pytest.fixture
def copied(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("llama"), tmp_path / "copied"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = dict(load_file(file))
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


# Additional files


@pytest.mark.parametrize("name", ["consolidated.safetensors", "zz-old.safetensors"])
@pytest.mark.parametrize("layout", ["sharded", "copied"])
def test_a_file_that_transformers_does_not_load_is_not_read(layout, name, request, tmp_path):
    folder = request.getfixturevalue(layout)
    before, files = checkpoint_identity(folder), weight_files(folder)
    own = [layer.up for layer in of_checkpoint(folder)]
    stale = {key: torch.zeros(128, 64).half() for key in (UP, "layers.0.feed_forward.w1.weight")}
    save_file(stale, folder / name)
    assert checkpoint_identity(folder) == before
    assert weight_files(folder) == files
    for ours, theirs in zip(own, of_checkpoint(folder), strict=True):
        torch.testing.assert_close(ours, theirs.up, rtol=0, atol=0)
    tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False).save_pretrained(folder)
    write_gguf(folder, tmp_path / "model.gguf", "f16", before)  # refused or a traceback before
    assert (tmp_path / "model.gguf").is_file()


def test_a_single_file_goes_before_an_index(sharded, checkpoint):
    """As in transformers; the shards then belong to another save."""
    shutil.copy(checkpoint("llama") / "model.safetensors", sharded)
    assert [file.name for file in weight_files(sharded)] == ["model.safetensors"]


def test_two_files_that_hold_one_tensor_are_refused(copied):
    """Without an index, the file of the model is ambiguous."""
    (copied / "model.safetensors").rename(copied / "a.safetensors")
    assert fingerprint(copied)
    save_file({UP: torch.zeros(128, 64).half()}, copied / "b.safetensors")
    for read in (fingerprint, tensor_files, of_checkpoint):
        with pytest.raises(
            HQError, match=rf"a\.safetensors and b\.safetensors .* both contain {UP}"
        ):
            read(copied)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_an_index_that_cannot_be_read_is_named(content, sharded):
    (sharded / INDEX_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(HQError, match=r"index\.json cannot be read"):
        resolve(str(sharded))


def test_a_shard_that_is_missing_is_named(sharded):
    gone = weight_files(sharded)[1]
    gone.unlink()
    with pytest.raises(HQError, match=f"{gone.name} is missing"):
        resolve(str(sharded))


def test_a_config_that_names_other_weights_is_refused(copied):
    save_file(load_file(copied / "model.safetensors"), copied / "other.safetensors")
    edit_config(copied, transformers_weights="other.safetensors")
    with pytest.raises(HQError, match=r"transformers_weights = 'other\.safetensors'"):
        TorchBackend(copied, device="cpu")


# Adapters


def lora(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(tiny.model("llama"), LoraConfig(r=2, target_modules=["down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)


def test_an_adapter_beside_weights_is_refused(copied):
    """If peft is installed, transformers attaches it, and files differ from the loaded model."""
    lora(copied)
    for read in (
        lambda f: TorchBackend(f, device="cpu"),
        checkpoint_identity,
        lambda f: resolve(str(f)),
    ):
        with pytest.raises(HQError, match=r"has an adapter beside its weights.*merge it"):
            read(copied)


def test_an_adapter_given_as_the_model_is_called_one(tmp_path):
    lora(tmp_path)
    path = tmp_path / "adapter_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": "acme/base"}
    path.write_text(json.dumps(stated), encoding="utf-8")
    with pytest.raises(HQError, match="is an adapter of acme/base, not a model: merge it"):
        resolve(str(tmp_path))


# Quantized checkpoints, and unused weights


def fp8(folder: Path) -> dict[str, object]:
    """Fine-grained FP8 as in DeepSeek's checkpoints: codes, and one scale per block of 64."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "proj" in n]:
            blocks = tensors[name].float().unflatten(0, (-1, 64 if len(tensors[name]) > 32 else 32))
            scale = blocks.abs().amax((1, 2)) / 448
            tensors[name] = (blocks / scale[:, None, None]).flatten(0, 1).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale[:, None].contiguous()

    edit_weights(folder, edit)
    return {"quant_method": "fp8", "weight_block_size": [64, 64], "activation_scheme": "dynamic"}


@pytest.mark.parametrize("precision", ["fp16", "int8", "nf4", "torchao-int8"])
def test_fine_grained_fp8_is_no_dense_precision(precision, copied):
    edit_config(copied, quantization_config=fp8(copied))
    with pytest.raises(HQError, match=r"quantized already \(fp8\), so it does not run as"):
        TorchBackend(copied, precision, device="cpu")


def test_fp8_codes_without_their_config_are_not_read_as_weights(copied):
    fp8(copied)
    with pytest.raises(HQError, match="in F8_E4M3, so it is quantized, and its config"):
        TorchBackend(copied, device="cpu")


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "hqq"])
def test_a_quantized_checkpoint_is_refused_before_any_package_is_asked_for(method, copied):
    edit_config(copied, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(HQError, match=rf"quantized already \({method}\)") as refused:
        TorchBackend(copied, device="cpu")
    named = {"gptq": "gptq-4", "awq": "awq-4", "compressed-tensors": "compressed-4"}
    assert named.get(method, "name its source") in str(refused.value)


def test_weights_that_the_architecture_does_not_use_are_refused(copied):
    """A bias that the config does not have would be missing in every product."""
    edit_weights(
        copied, lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.ones(128).half()})
    )
    with pytest.raises(
        HQError, match=r"1 weights that its architecture does not use, .*up_proj\.bias"
    ):
        TorchBackend(copied, device="cpu")


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
        ("gpt2", {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)}),
        ("gemma2", {"lm_head.weight": torch.ones(128, 64).half()}),  # tied, but saved
    ],
)
def test_leftovers_that_are_computed_today_are_let_be(family, extra, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint(family), tmp_path / "copied"))
    edit_weights(folder, lambda tensors: tensors.update(extra))
    TorchBackend(folder, device="cpu").close()
