"""OLMo, OLMoE, and models without norm weights before the FFN: norms follow it, or have none."""

from hq.models.architectures.experts import Experts
from hq.models.architectures.record import (
    LLAMA_NORMS,
    QK_NORMS,
    Architecture,
    register_architecture,
)
from hq.models.norm_digest import NormNames

register_architecture(Architecture(norm=""), "exaone4", "olmo", "olmo2", "olmo3")
register_architecture(Architecture(down="mlp.fc2", up="mlp.fc1", gate="", norm=""), "nanochat")
register_architecture(
    Architecture(
        norms=NormNames(LLAMA_NORMS | QK_NORMS), experts=Experts(width="intermediate_size")
    ),
    "olmoe",
)
