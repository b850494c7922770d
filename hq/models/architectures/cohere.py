"""Cohere's Command models: attention and FFN run in parallel after one norm."""

from hq.models.architectures.record import Architecture, register_architecture

register_architecture(Architecture(norm="input_layernorm"), "cohere", "cohere2")
