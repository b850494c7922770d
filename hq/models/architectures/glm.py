"""GLM: one projection holds gate and up, as in Phi-3."""

from hq.models.architectures.record import Architecture, register_architecture

register_architecture(Architecture(up="mlp.gate_up_proj", gate="", fused=True), "glm", "glm4")
