"""Llama, Mistral, and models with the same layer: RMSNorm, gated FFN, rotary embeddings."""

from typing import TYPE_CHECKING

from hq.models.architectures import gguf_settings, llama_cpp
from hq.models.architectures.gguf_settings import Fields, GGUFSettings
from hq.models.architectures.record import (
    GGUF_LAYOUTS,
    LLAMA_NORMS,
    Architecture,
    Conversion,
    Layout,
    Metadata,
    register_architecture,
)
from hq.models.norm_digest import NormNames

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig


def metadata(config: "PretrainedConfig") -> Metadata:
    """Metadata of Llama and Mistral, which are one architecture in llama.cpp."""
    rope = llama_cpp.rope_keys(config, config.rope_parameters, ("default", "linear", "llama3"))
    return llama_cpp.common(config, "silu") | llama_cpp.without_window(config) | rope


def _fields(settings: GGUFSettings) -> Fields:
    return (
        gguf_settings.common_fields(settings)
        | gguf_settings.fields_within_window(settings)
        | {
            "attention_bias": settings.biased(*gguf_settings.ATTENTION_PARTS),
            "mlp_bias": settings.biased(*gguf_settings.MLP_PARTS),
            "rope_parameters": gguf_settings.rope_parameters(settings),
        }
    )


_NORMS = NormNames(LLAMA_NORMS)
_CONVERSION = Conversion(
    "llama",
    metadata,
    llama_cpp.interleaved,
    llama_cpp.llama3_factors,
    llama_cpp.LINEAR_BIASES,
)

register_architecture(Architecture(norms=_NORMS, conversion=_CONVERSION), "llama", "mistral")
register_architecture(
    Architecture(norms=_NORMS),
    "cwm",
    "diffllama",
    "ernie4_5",
    "granite",
    "granite_swa",
    "helium",
    "hunyuan_v1_dense",
    "hyperclovax",
    "internlm3",
    "iquestcoder",
    "minicpm3",
    "ministral",
    "ministral3",
    "seed_oss",
    "smollm3",
    "youtu",
)
# BitNet normalizes h before the down projection, so h_i is not linear in its own row of W_up.
register_architecture(Architecture(norms=_NORMS, linear_in_up=False), "bitnet")
GGUF_LAYOUTS.add("llama", Layout("llama", _fields, llama_cpp.GATED, llama_cpp.OUTSIDE))
