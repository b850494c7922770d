"""Random checkpoints with a tokenizer, to be written as GGUF, and the keys of what was written."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests import tiny, tiny_tokenizers


def shape(**changes: Any) -> dict[str, Any]:
    kwargs = tiny.FAMILIES["llama"]().to_dict()
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    keys += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    return {key: kwargs[key] for key in keys} | changes


def save(folder: Path, config: hf.PretrainedConfig, tokenizer: Any = None, **how: Any) -> Path:
    """A random FP16 checkpoint with a tokenizer; biases and norms are random too."""
    generator = torch.Generator().manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            centre = 1.0 if weight.ndim == 1 and weight.mean() > 0.5 else 0.0
            weight.copy_(centre + 0.15 * torch.randn(weight.shape, generator=generator))
    model.half().save_pretrained(folder, **how)
    tokenizer = tokenizer or tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False)
    tokenizer.save_pretrained(folder)
    return folder


def keys(path: Path) -> dict[str, Any]:
    import gguf

    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
