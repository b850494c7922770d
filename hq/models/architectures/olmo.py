"""OLMo, OLMoE, and models without norm weights before the FFN: norms follow it, or have none."""

from typing import TYPE_CHECKING

from hq.models.architectures import llama_cpp
from hq.models.architectures.experts import Experts
from hq.models.architectures.gguf_settings import refuse_mixture
from hq.models.architectures.record import (
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

_EXPERTS = Experts(width="intermediate_size")


def _metadata(config: "PretrainedConfig") -> Metadata:
    if config.num_key_value_heads != config.num_attention_heads:
        raise llama_cpp.unsupported(
            config,
            f"num_key_value_heads = {config.num_key_value_heads}",
            f"num_key_value_heads = {config.num_attention_heads}",
        )
    if config.clip_qkv is not None:
        raise llama_cpp.unsupported(config, f"clip_qkv = {config.clip_qkv}", "no clipping")
    rope = llama_cpp.rope_keys(config, config.rope_parameters, ("default", "linear"))
    experts = llama_cpp.expert_keys(config, _EXPERTS, normalized=False)
    return llama_cpp.common(config, "silu") | rope | experts


register_architecture(Architecture(norm=""), "exaone4", "olmo", "olmo2", "olmo3")
register_architecture(Architecture(down="mlp.fc2", up="mlp.fc1", gate="", norm=""), "nanochat")
register_architecture(
    Architecture(
        norms=NormNames(LLAMA_NORMS | QK_NORMS),
        conversion=Conversion("olmoe", _metadata, llama_cpp.as_it_is),
        experts=_EXPERTS,
    ),
    "olmoe",
)
GGUF_MIXTURES.add(
    "olmoe",
    Layout(
        "olmoe",
        refuse_mixture,
        llama_cpp.NORMS | llama_cpp.EXPERTS | {"attn_q_norm": "q", "attn_k_norm": "k"},
        llama_cpp.OUTSIDE,
    ),
)
