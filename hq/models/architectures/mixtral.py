"""Mixtral: Mistral with a mixture of experts in every layer."""

from hq.models.architectures.experts import Experts
from hq.models.architectures.record import LLAMA_NORMS, Architecture, register_architecture
from hq.models.norm_digest import NormNames

register_architecture(
    Architecture(
        norms=NormNames(LLAMA_NORMS),
        experts=Experts(
            count="num_local_experts",
            width="intermediate_size",
            stored="block_sparse_moe.experts.{}.",
            gate="w1",
            up="w3",
            down="w2",
            router="block_sparse_moe.gate",
        ),
    ),
    "mixtral",
)
