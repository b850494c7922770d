"""Qwen 2 and 3, dense or mixtures of experts, alone or inside the multimodal Qwen-VL models."""

from typing import TYPE_CHECKING

from hq.models.architectures import gguf_settings, llama_cpp
from hq.models.architectures.experts import Experts, by_step
from hq.models.architectures.gguf_settings import Fields, GGUFSettings
from hq.models.architectures.record import (
    GGUF_LAYOUTS,
    GGUF_MIXTURES,
    LLAMA_NORMS,
    QK_NORMS,
    Architecture,
    Conversion,
    Layout,
    Metadata,
    register_architecture,
)
from hq.models.norm_digest import NormNames

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig


def _qwen2(config: "PretrainedConfig") -> Metadata:
    if config.num_attention_heads * llama_cpp.head_width(config) != config.hidden_size:
        raise llama_cpp.unsupported(
            config, f"head_dim {llama_cpp.head_width(config)}", "hidden_size / num_attention_heads"
        )
    return _qwen3(config)


def _qwen3(config: "PretrainedConfig") -> Metadata:
    rope = llama_cpp.rope_keys(config, config.rope_parameters, ("default", "linear"))
    return llama_cpp.common(config, "silu") | llama_cpp.without_window(config) | rope


def _qwen2_fields(settings: GGUFSettings) -> Fields:
    return (
        gguf_settings.common_fields(settings)
        | gguf_settings.fields_within_window(settings)
        | {"rope_parameters": gguf_settings.rope_parameters(settings)}
    )


def _qwen3_fields(settings: GGUFSettings) -> Fields:
    has_bias = settings.biased(*gguf_settings.ATTENTION_PARTS)
    return _qwen2_fields(settings) | {"attention_bias": has_bias}


_QWEN2_EXPERTS = Experts(
    shared="mlp.shared_expert",
    shared_width="shared_expert_intermediate_size",
    is_mixture=by_step,
)
_QWEN3_EXPERTS = Experts(is_mixture=by_step)


def _qwen2_moe(config: "PretrainedConfig") -> Metadata:
    return _qwen2(config) | llama_cpp.expert_keys(config, _QWEN2_EXPERTS, normalized=False)


def _qwen3_moe(config: "PretrainedConfig") -> Metadata:
    return _qwen3(config) | llama_cpp.expert_keys(config, _QWEN3_EXPERTS, normalized=True)


_QWEN2 = NormNames(LLAMA_NORMS)
_QWEN3 = NormNames(LLAMA_NORMS | QK_NORMS)
_BIASES = llama_cpp.QKV_BIASES

register_architecture(
    Architecture(
        norms=_QWEN2,
        conversion=Conversion("qwen2", _qwen2, llama_cpp.as_it_is, biases=_BIASES),
    ),
    "qwen2",
)
register_architecture(
    Architecture(
        norms=_QWEN3,
        conversion=Conversion("qwen3", _qwen3, llama_cpp.as_it_is, biases=_BIASES),
    ),
    "qwen3",
)
register_architecture(
    Architecture(
        norms=_QWEN2,
        conversion=Conversion("qwen2moe", _qwen2_moe, llama_cpp.as_it_is, biases=_BIASES),
        experts=_QWEN2_EXPERTS,
    ),
    "qwen2_moe",
)
register_architecture(
    Architecture(
        norms=_QWEN3,
        conversion=Conversion("qwen3moe", _qwen3_moe, llama_cpp.as_it_is),
        experts=_QWEN3_EXPERTS,
    ),
    "qwen3_moe",
)
register_architecture(Architecture(norms=_QWEN2), "qwen2_vl_text", "qwen2_5_vl_text")
register_architecture(Architecture(norms=_QWEN3), "qwen3_vl_text")
GGUF_LAYOUTS.add(
    "qwen2", Layout("qwen2", _qwen2_fields, llama_cpp.GATED, llama_cpp.OUTSIDE, _BIASES)
)
GGUF_LAYOUTS.add(
    "qwen3",
    Layout("qwen3", _qwen3_fields, llama_cpp.GATED | llama_cpp.QK_LENGTHS, llama_cpp.OUTSIDE),
)
GGUF_MIXTURES.add(
    "qwen2moe",
    Layout(
        "qwen2_moe",
        gguf_settings.refuse_mixture,
        llama_cpp.NORMS | llama_cpp.EXPERTS | llama_cpp.SHARED_EXPERT,
        llama_cpp.OUTSIDE,
        _BIASES,
        expert_width="expert_feed_forward_length",
        shared_width="expert_shared_feed_forward_length",
    ),
)
GGUF_MIXTURES.add(
    "qwen3moe",
    Layout(
        "qwen3_moe",
        gguf_settings.refuse_mixture,
        llama_cpp.NORMS | llama_cpp.EXPERTS | llama_cpp.QK_LENGTHS,
        llama_cpp.OUTSIDE,
        expert_width="expert_feed_forward_length",
    ),
)
