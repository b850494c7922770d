"""Gemma 1 to 3: norms add 1 to their weights; from Gemma 2, norms precede and follow the FFN."""

import math
from typing import TYPE_CHECKING

import numpy as np

from hq.models.architectures import gguf_settings, llama_cpp
from hq.models.architectures.gguf_settings import Fields, GGUFSettings
from hq.models.architectures.record import (
    GGUF_LAYOUTS,
    LLAMA_NORMS,
    QK_NORMS,
    Architecture,
    Conversion,
    Layout,
    Metadata,
    Weights,
    register_architecture,
)
from hq.models.norm_digest import NormNames

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

# llama.cpp recognizes a 27B model, with its different query scale, by its number of layers.
_GEMMA2_27B, _GEMMA3_27B = 46, 62


def _gemma2(config: "PretrainedConfig") -> Metadata:
    caps = {
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }
    for key, cap in caps.items():
        if not cap:
            raise llama_cpp.unsupported(config, f"{key} {cap}", "a number")
    llama_cpp.require_pattern(config, 2)
    if math.frexp(_query_factor(config, _GEMMA2_27B))[0] != 0.5:  # scaling would round
        scalar = config.query_pre_attn_scalar
        raise llama_cpp.unsupported(config, f"query_pre_attn_scalar {scalar}", "head_dim")
    return (
        llama_cpp.common(config, "gelu_pytorch_tanh")
        | {"attention.sliding_window": config.sliding_window}
        | llama_cpp.rope_keys(config, config.rope_parameters, ("default",))
        | {key: float(cap) for key, cap in caps.items()}
    )


def _gemma3(config: "PretrainedConfig") -> Metadata:
    """Metadata of Gemma 3's language model, alone or inside the multimodal model."""
    if config.attn_logit_softcapping:
        cap = config.attn_logit_softcapping
        raise llama_cpp.unsupported(config, f"attn_logit_softcapping {cap}", "none")
    if config.use_bidirectional_attention:
        raise llama_cpp.unsupported(config, "bidirectional attention", "causal attention")
    llama_cpp.require_pattern(config, 6)
    ropes = config.rope_parameters
    local = llama_cpp.rope_keys(config, ropes["sliding_attention"], ("default",))
    softcap = config.final_logit_softcapping
    return (
        llama_cpp.common(config, "gelu_pytorch_tanh")
        | {"attention.sliding_window": config.sliding_window}
        | llama_cpp.rope_keys(config, ropes["full_attention"], ("default", "linear"))
        | {"rope.freq_base_swa": local["rope.freq_base"]}
        | ({"final_logit_softcapping": float(softcap)} if softcap else {})
    )


def _gemma2_weights(part: str, weights: Weights, config: "PretrainedConfig") -> Weights:
    """1 + w for norms; Q is multiplied by the model's query scale over llama.cpp's."""
    if part == "attn_q":
        return weights * np.float32(_query_factor(config, _GEMMA2_27B))
    return weights + 1 if part.endswith("norm") else weights


def _gemma3_weights(part: str, weights: Weights, config: "PretrainedConfig") -> Weights:
    """1 + w for norms; Q's norm is multiplied by the model's query scale over llama.cpp's."""
    if part == "attn_q_norm":
        return (weights + 1) * np.float32(_query_factor(config, _GEMMA3_27B))
    return weights + 1 if part.endswith("norm") else weights


def _query_factor(config: "PretrainedConfig", layers_of_27b: int) -> float:
    """Return the model's query scale over llama.cpp's; 1 for all published models."""
    built_in = llama_cpp.head_width(config)
    if config.num_hidden_layers == layers_of_27b:
        built_in = config.hidden_size // config.num_attention_heads
    return math.sqrt(built_in / config.query_pre_attn_scalar)


def _gemma2_fields(settings: GGUFSettings) -> Fields:
    rope = gguf_settings.rope_parameters(settings)
    local = settings.get("rope.freq_base_swa", rope["rope_theta"])
    if local != rope["rope_theta"]:
        raise settings.refusal("rope.freq_base_swa", "and transformers' Gemma 2 has one base")
    window = settings.get("attention.sliding_window", 4096)
    return (
        _shared_fields(settings, _GEMMA2_27B)
        | gguf_settings.sliding_window(settings, window, 2)
        | {
            "attn_logit_softcapping": settings.get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": settings.get("final_logit_softcapping", 30.0),
            "rope_parameters": rope,
        }
    )


def _gemma3_fields(settings: GGUFSettings) -> Fields:
    local = {"rope_type": "default", "rope_theta": settings.get("rope.freq_base_swa", 10000.0)}
    full = gguf_settings.rope_parameters(settings)
    window = settings.get("attention.sliding_window", 0)
    return (
        _shared_fields(settings, _GEMMA3_27B)
        | gguf_settings.sliding_window(settings, window, 6)
        | {
            "final_logit_softcapping": settings.get("final_logit_softcapping", 0.0) or None,
            "rope_parameters": {"full_attention": full, "sliding_attention": local},
        }
    )


def _shared_fields(settings: GGUFSettings, layers_of_27b: int) -> Fields:
    """Fields of both Gemma 2 and 3; the query scale follows from other sizes."""
    fields = gguf_settings.common_fields(settings)
    scalar = fields["head_dim"]
    if settings.file.n_layers == layers_of_27b:
        scalar = fields["hidden_size"] // fields["num_attention_heads"]
    return fields | {
        "attention_bias": settings.biased(*gguf_settings.ATTENTION_PARTS),
        "query_pre_attn_scalar": scalar,
    }


_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_POST_NORMS = {"post_attention_norm": "d_model", "post_ffw_norm": "d_model"}
_BEFORE_FFN = "pre_feedforward_layernorm"

register_architecture(
    Architecture(norm_offset=1.0, norms=NormNames(LLAMA_NORMS, offset=1.0)), "gemma"
)
register_architecture(Architecture(norm=_BEFORE_FFN, norm_offset=1.0), "vaultgemma")
register_architecture(
    Architecture(
        norm=_BEFORE_FFN,
        norm_offset=1.0,
        norms=NormNames(_NORMS, offset=1.0),
        conversion=Conversion("gemma2", _gemma2, _gemma2_weights),
    ),
    "gemma2",
)
register_architecture(
    Architecture(
        norm=_BEFORE_FFN,
        norm_offset=1.0,
        norms=NormNames(_NORMS | QK_NORMS, offset=1.0),
        conversion=Conversion("gemma3", _gemma3, _gemma3_weights),
    ),
    "gemma3_text",
)
GGUF_LAYOUTS.add(
    "gemma2", Layout("gemma2", _gemma2_fields, llama_cpp.GATED | _POST_NORMS, llama_cpp.OUTSIDE)
)
GGUF_LAYOUTS.add(
    "gemma3",
    Layout(
        "gemma3_text",
        _gemma3_fields,
        llama_cpp.GATED | _POST_NORMS | llama_cpp.QK_LENGTHS,
        llama_cpp.OUTSIDE,
    ),
)
