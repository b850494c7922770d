"""OPT and other decoders in fairseq's style: `fc1` and `fc2` are in the layer itself."""

from dataclasses import replace

from hq.models.architectures.record import Architecture, attribute, register_architecture

_FAIRSEQ = Architecture(down="fc2", up="fc1", gate="", norm="final_layer_norm")

register_architecture(_FAIRSEQ, "biogpt")
register_architecture(replace(_FAIRSEQ, width=attribute("ffn_dim")), "opt", "xglm")
