"""Models with Llama's layer but without a gate: Nemotron, Arcee, Apertus, Jais 2."""

from hq.models.architectures.record import Architecture, register_architecture

register_architecture(Architecture(gate=""), "arcee", "jais2")
register_architecture(Architecture(gate="", norm_offset=1.0), "nemotron")
register_architecture(Architecture(gate="", norm="feedforward_layernorm"), "apertus")
