"""A GGUF file as an FP16 checkpoint: every setting that the file has is in the model that runs."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import transformers as hf

from harness import dequantized, equality
from hq.backends.torch import TorchBackend
from hq.checkpoint import identity
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.write import write
from tests import tiny, tiny_tokenizers
from tests.hq import gguf_checkpoints, gguf_files

LLAMA, GEMMA = tiny.FAMILIES["llama"], tiny.FAMILIES["gemma2"]
ROPE = {"rope_theta": 500_000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
}


def config(family, **changes):
    """A tiny config of the family with other settings, which stay as they are given."""
    made = tiny.FAMILIES[family]()
    return type(made)(**(made.to_dict() | changes))


# What hq's writer makes of them is what llama.cpp's converter would.
WRITTEN = {
    "as it is": lambda: config("llama"),
    "llama3": lambda: config(
        "llama",
        rope_parameters=ROPE | LLAMA3 | {"original_max_position_embeddings": 8192},
    ),
    "another llama3": lambda: config(
        "llama",
        rope_parameters=ROPE | LLAMA3 | {"original_max_position_embeddings": 64, "factor": 4.0},
    ),
    "linear": lambda: config("llama", rope_parameters=ROPE | {"rope_type": "linear", "factor": 4.0}),
    "biases": lambda: config("llama", attention_bias=True, mlp_bias=True),
    "head_dim": lambda: config("llama", head_dim=32),
    "untied, another epsilon": lambda: config("llama", rms_norm_eps=3e-3, tie_word_embeddings=False),
    "tied": lambda: config("llama", tie_word_embeddings=True),
    "qwen2 linear": lambda: config(
        "qwen2", rope_parameters=ROPE | {"rope_type": "linear", "factor": 4.0}
    ),
    "qwen3 head_dim": lambda: config("qwen3", head_dim=32),
    "gemma2 caps": lambda: config(
        "gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=16
    ),
    "gemma2 27B": lambda: config(
        "gemma2", num_hidden_layers=46, query_pre_attn_scalar=16, head_dim=32, layer_types=None
    ),
    "gemma3 linear": lambda: config(
        "gemma3_text",
        num_hidden_layers=6,
        layer_types=None,
        rope_parameters=GEMMA3_ROPE,
        query_pre_attn_scalar=16,
    ),
    "gemma3 cap": lambda: config(
        "gemma3_text", final_logit_softcapping=2.0, query_pre_attn_scalar=16
    ),
}


def save(folder, made):
    tokenizer = tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False)
    return gguf_checkpoints.save(folder, made, tokenizer)


def require_same_traces(source, folder):
    """Every neuron's trace, relative to the layer's largest."""
    texts = tiny.exchanges()
    spans = ("answer", "last")
    with TorchBackend(source) as theirs, TorchBackend(folder) as ours:
        for expected, found in zip(
            theirs.trace(texts, spans=spans), ours.trace(texts, spans=spans), strict=True
        ):
            size = expected.values.max(axis=-1, keepdims=True)
            assert (np.abs(found.values - expected.values) / size).max() < 1e-5


@pytest.mark.parametrize("case", WRITTEN)
def test_a_setting_is_carried_over(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    source = save(tmp_path / "source", WRITTEN[case]())
    write(source, tmp_path / "model.gguf", "f32", identity(source))
    folder = dequantized.checkpoint_of(tmp_path / "model.gguf")
    require_same_traces(source, folder)
    assert equality.proved(folder) == equality.provable()
