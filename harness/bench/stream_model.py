"""Random Llama checkpoints of real sizes, written layer by layer in constant memory."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from hq.models.checkpoint import INDEX_FILE

_BLOCK = 1 << 22  # random numbers, of which all weights are made


def write_llama(folder: Path, config: LlamaConfig, seed: int) -> int:
    """Write a checkpoint in FP16, a shard per layer, and return the bytes of its tensors."""
    config.save_pretrained(folder)
    names: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(_shards(config, seed)):
        shard = f"model-{number:05}.safetensors"
        save_file(tensors, folder / shard, {"format": "pt"})
        names |= dict.fromkeys(tensors, shard)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": names}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    return size


def forget(folder: Path) -> bool:
    """Remove the files of a folder from the system's cache; return whether the system can."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in folder.glob("*.safetensors"):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return True


def _shards(config: LlamaConfig, seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(_BLOCK, generator=generator).mul_(config.hidden_size**-0.5).half()

    def draw(*shape: int) -> Tensor:
        made = torch.empty(shape, dtype=torch.float16)
        flat, size = made.view(-1), made.numel()
        for start in range(0, size, _BLOCK):
            turn = int(torch.randint(_BLOCK, (1,), generator=generator))
            part = block.roll(turn)[: size - start]
            flat[start : start + len(part)] = part
        return made

    d, d_ff, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    heads, keys, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    ones = torch.ones(d, dtype=torch.float16)
    for layer in range(config.num_hidden_layers):
        shapes = {
            "self_attn.q_proj": (heads * head, d),
            "self_attn.k_proj": (keys * head, d),
            "self_attn.v_proj": (keys * head, d),
            "self_attn.o_proj": (d, heads * head),
            "mlp.gate_proj": (d_ff, d),
            "mlp.up_proj": (d_ff, d),
            "mlp.down_proj": (d, d_ff),
        }
        tensors = {f"{name}.weight": draw(*shape) for name, shape in shapes.items()}
        tensors |= {f"{name}.weight": ones.clone() for name in _NORMS}
        yield {f"model.layers.{layer}.{name}": tensor for name, tensor in tensors.items()}
    yield {"model.embed_tokens.weight": draw(vocabulary, d), "model.norm.weight": ones}
    if not config.tie_word_embeddings:
        yield {"lm_head.weight": draw(vocabulary, d)}


_NORMS = ("input_layernorm", "post_attention_layernorm")
