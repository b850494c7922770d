"""Writes a transformers config as GGUF metadata: the parts that families share.

A setting that llama.cpp would silently compute in another way raises HQError.
`hq.models.architectures.gguf_settings` is the inverse.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hq.errors import HQError
from hq.models.architectures.experts import Experts
from hq.models.architectures.record import Metadata, Weights

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

SEPARATE = {"attn_q": "d_model q", "attn_k": "d_model k", "attn_v": "d_model v"}
FUSED = {"attn_qkv": "d_model qkv"}
ATTENTION = {"attn_output": "o d_model"}
NORMS = {"attn_norm": "d_model", "ffn_norm": "d_model"}
FFN_SHAPES = {"ffn_up": "d_model d_ff", "ffn_down": "d_ff d_model"}
GATED = NORMS | FFN_SHAPES | {"ffn_gate": "d_model d_ff"}
EXPERTS = {
    "ffn_gate_inp": "d_model experts",
    "ffn_gate_exps": "d_model expert_ff experts",
    "ffn_up_exps": "d_model expert_ff experts",
    "ffn_down_exps": "expert_ff d_model experts",
}
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "d_model",
    "ffn_gate_shexp": "d_model shared_ff",
    "ffn_up_shexp": "d_model shared_ff",
    "ffn_down_shexp": "shared_ff d_model",
}
QK_LENGTHS = {"attn_q_norm": "key", "attn_k_norm": "key"}
OUTSIDE = {"token_embd": "d_model vocabulary", "output_norm": "d_model"}
QKV_BIASES = frozenset(SEPARATE)
LINEAR_BIASES = frozenset({*SEPARATE, *ATTENTION, *FFN_SHAPES, "ffn_gate"})


def common(config: "PretrainedConfig", activation: str) -> Metadata:
    """Metadata that every architecture has."""
    stated = getattr(config, "hidden_activation", None) or config.hidden_act
    if stated != activation:
        raise unsupported(config, f"activation {stated}", activation)
    head_dim = head_width(config)
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_dim,
    }


def expert_keys(config: "PretrainedConfig", family: Experts, normalized: bool) -> Metadata:
    """Metadata of the experts of `family`.

    `normalized` is whether llama.cpp divides the routing weights by their sum over the experts that
    a token is routed to. Raises HQError for a config that says otherwise, or has dense layers.
    """
    stated = getattr(config, "norm_topk_prob", normalized)
    if bool(stated) != normalized:
        raise unsupported(config, f"norm_topk_prob = {stated}", f"norm_topk_prob = {normalized}")
    if not all(family.is_mixture(config, layer) for layer in range(config.num_hidden_layers)):
        raise unsupported(config, "dense layers among its mixtures", "experts in every layer")
    keys: Metadata = {
        "expert_count": int(getattr(config, family.count)),
        "expert_used_count": config.num_experts_per_tok,
    }
    if family.width != "intermediate_size":
        keys["expert_feed_forward_length"] = int(getattr(config, family.width))
    if family.shared:
        keys["expert_shared_feed_forward_length"] = int(getattr(config, family.shared_width))
    return keys


def without_window(config: "PretrainedConfig") -> Metadata:
    """Context length of an architecture that llama.cpp always runs with full attention.

    Full and sliding attention agree on texts that fit into the window, so the context length is
    limited to the window.
    """
    types = getattr(config, "layer_types", None)
    slides = types is None or "sliding_attention" in types
    window = getattr(config, "sliding_window", None) if slides else None
    return {"context_length": min(config.max_position_embeddings, window or math.inf)}


def rope_keys(
    config: "PretrainedConfig", parameters: Mapping[str, float | str], allowed: tuple[str, ...]
) -> Metadata:
    """Base and linear scaling of rotary embeddings; for llama3 scaling see `llama3_factors`."""
    kind = str(parameters.get("rope_type", "default"))
    if kind not in allowed:
        raise unsupported(config, f"rope scaling {kind!r}", " or ".join(allowed))
    if float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise unsupported(config, "partial rotary embeddings", "full ones")
    base: Metadata = {"rope.freq_base": float(parameters["rope_theta"])}
    if kind != "linear":
        return base
    return base | {"rope.scaling.type": kind, "rope.scaling.factor": float(parameters["factor"])}


def llama3_factors(config: "PretrainedConfig") -> dict[str, Weights]:
    """Frequency divisors of rope type llama3, [head_dim / 2], as a GGUF tensor."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return {}
    head_dim, factor = head_width(config), rope["factor"]
    steps = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelength = 2 * np.pi * np.float32(rope["rope_theta"]) ** steps
    turns = rope["original_max_position_embeddings"] / wavelength
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)}


def as_it_is(_: str, weights: Weights, __: "PretrainedConfig") -> Weights:
    """The weights unchanged."""
    return weights


def interleaved(part: str, weights: Weights, config: "PretrainedConfig") -> Weights:
    """Reorder the rows of Q and K: llama.cpp rotates adjacent pairs, transformers halves."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    if part not in heads:
        return weights
    halves = weights.reshape(heads[part], 2, -1, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def require_pattern(config: "PretrainedConfig", period: int) -> None:
    """Raise HQError unless exactly every `period`-th layer has full attention, as in llama.cpp."""
    layers = range(1, config.num_hidden_layers + 1)
    expected = ["full_attention" if n % period == 0 else "sliding_attention" for n in layers]
    if list(config.layer_types) != expected:
        raise unsupported(
            config, "its layer_types", f"full attention at every layer {period}, {2 * period}, …"
        )


def head_width(config: "PretrainedConfig") -> int:
    """Return the width of one attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def unsupported(config: "PretrainedConfig", setting: str, instead: str) -> HQError:
    """Return the error for a config that llama.cpp would compute with another setting."""
    return HQError(
        f"A {config.model_type} model with {setting} cannot be written as GGUF: llama.cpp would "
        f"compute it with {instead}; run it with a precision of the torch backend."
    )
