"""Phi-3 (gate and up projection in one), and the earlier Phi, whose FFN has no gate."""

from hq.models.architectures import llama_cpp
from hq.models.architectures.record import (
    GGUF_LAYOUTS,
    LLAMA_NORMS,
    Architecture,
    Layout,
    register_architecture,
)
from hq.models.norm_digest import NormNames

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
        llama_cpp.NORMS | llama_cpp.FFN_SHAPES | {"ffn_up": "d_model 2d_ff"},
        llama_cpp.OUTSIDE,
    ),
)
