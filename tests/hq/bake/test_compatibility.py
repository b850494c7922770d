"""Whether a neuron set belongs to a model on disk, also to a quantized one."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hq.errors import HQError
from hq.models.checkpoint import identity
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.suppress.bake import require_owner
from tests import packed_files, tiny
from tests.packed_files import PACKINGS


def neurons_of(checkpoint: Path) -> NeuronSet:
    return NeuronSet(
        model=identity(checkpoint),
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0.0,
        neurons=(Neuron(layer=0, index=3, weight=1.0, mean=0.0, scale=1.0),),
    )


def edited(source: Path, into: Path, change) -> Path:
    shutil.copytree(source, into)
    tensors = load_file(into / "model.safetensors")
    tensors = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


def awq_like(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The norm before the FFN halved, and what reads from it doubled: as AWQ folds its scales."""
    if "post_attention_layernorm" in name:
        return tensor / 2
    return tensor * 2 if "gate_proj" in name or "up_proj" in name else tensor


def test_a_dense_checkpoint_is_known_by_its_fingerprint(checkpoint):
    require_owner(neurons_of(checkpoint("llama")), checkpoint("llama"))
    with pytest.raises(HQError, match=r"mine belongs to llama .* not to qwen2"):
        require_owner(neurons_of(checkpoint("llama")), checkpoint("qwen2"), name="mine")


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_a_quantized_one_by_its_norms_or_its_source(kind, saved, tmp_path):
    pytest.importorskip("bitsandbytes")
    for family in ("llama", "opt"):
        packed = saved(family, kind)
        neurons = neurons_of(packed.parent / family)
        if family == "llama":
            require_owner(neurons, packed)
        else:
            with pytest.raises(HQError, match="does not show that it was made from opt, to which"):
                require_owner(neurons, packed)
        require_owner(neurons, packed, packed.parent / family)
        other = tiny.save(family, tmp_path / family, seed=1)
        with pytest.raises(HQError, match="does not show that it was made"):
            require_owner(neurons_of(other), packed)
        with pytest.raises(HQError, match=r"Layer 0 of .* is another beside"):
            require_owner(neurons_of(other), packed, other)
        with pytest.raises(HQError, match="belongs to"):
            require_owner(neurons, packed, other)


def test_awq_by_its_source_alone(checkpoint, tmp_path):
    source = checkpoint("llama")
    folded = edited(source, tmp_path / "folded", awq_like)
    packed = packed_files.save_packed(folded, tmp_path / "awq", PACKINGS["awq-4"])
    with pytest.raises(HQError, match="name that checkpoint as the source"):
        require_owner(neurons_of(source), packed)
    require_owner(neurons_of(source), packed, source)


def test_a_set_of_the_quantized_checkpoint_itself(packed):
    require_owner(neurons_of(packed("gptq-4")), packed("gptq-4"))


def test_permuted_neurons_are_not_those_of_the_set(checkpoint, tmp_path):
    source = checkpoint("llama")

    def turn(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if "down_proj" in name:
            return tensor.roll(1, dims=1)
        return tensor.roll(1, dims=0) if "gate_proj" in name or "up_proj" in name else tensor

    moved = edited(source, tmp_path / "moved", turn)
    packed = packed_files.save_packed(moved, tmp_path / "packed", PACKINGS["gptq-8"])
    require_owner(neurons_of(source), packed)  # norms cannot tell
    with pytest.raises(HQError, match=r"Layer 0 of .* is permuted beside .*not those of the set"):
        require_owner(neurons_of(source), packed, source)


def test_a_gguf_file_by_its_source(gguf, checkpoint):
    pytest.importorskip("llama_cpp")
    folder = gguf("llama", "q8_0").with_suffix("")
    require_owner(neurons_of(folder), gguf("llama", "q8_0"))
    require_owner(neurons_of(folder), gguf("llama", "q8_0"), folder)
    with pytest.raises(HQError, match="belongs to"):
        require_owner(neurons_of(checkpoint("qwen2")), gguf("llama", "q8_0"))


def test_a_source_of_another_depth(tmp_path, checkpoint):
    tiny.model("llama", num_hidden_layers=2).half().save_pretrained(tmp_path / "two")
    with pytest.raises(HQError, match=r"has 3 layers, .*two has 2"):
        require_owner(neurons_of(tmp_path / "two"), checkpoint("llama"), tmp_path / "two")
