"""Phi-3 (one projection holds gate and up), and the earlier Phi without a gate."""

from hq.models.architectures import gguf_settings, llama_cpp
from hq.models.architectures.gguf_settings import Fields, GGUFSettings
from hq.models.architectures.record import (
    GGUF_LAYOUTS,
    LLAMA_NORMS,
    Architecture,
    Layout,
    register_architecture,
)
from hq.models.norm_digest import NormNames


def _phi3_fields(settings: GGUFSettings) -> Fields:
    fields = gguf_settings.common_fields(settings, partial=True)
    rotated = gguf_settings.rotated_width(settings) / fields.pop("head_dim")
    rope = gguf_settings.rope_parameters(settings) | {"partial_rotary_factor": rotated}
    context = fields["max_position_embeddings"]
    # llama.cpp runs it with full attention, as its files lack the pattern of layers.
    return fields | {
        "sliding_window": settings.get("attention.sliding_window") or None,
        "original_max_position_embeddings": settings.get(
            "rope.scaling.original_context_length", context
        ),
        "rope_parameters": rope,
    }


register_architecture(
    Architecture(up="mlp.gate_up_proj", gate="", fused=True, norms=NormNames(LLAMA_NORMS)), "phi3"
)
register_architecture(
    Architecture(down="mlp.fc2", up="mlp.fc1", gate="", norm="input_layernorm"), "phi"
)
GGUF_LAYOUTS.add(  # the gate is the first half of ffn_up
    "phi3",
    Layout(
        "phi3",
        _phi3_fields,
        llama_cpp.NORMS | llama_cpp.FFN_SHAPES | {"ffn_up": "d_model 2d_ff"},
        llama_cpp.OUTSIDE,
    ),
)
