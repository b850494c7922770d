"""Models without norm weights before the FFN: norms follow the FFN, or have no weights."""

from hq.models.architectures.record import Architecture, register_architecture

register_architecture(Architecture(norm=""), "exaone4", "olmo", "olmo2", "olmo3")
register_architecture(Architecture(down="mlp.fc2", up="mlp.fc1", gate="", norm=""), "nanochat")
