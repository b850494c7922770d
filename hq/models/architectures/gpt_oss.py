"""gpt-oss: experts with biases, interleaved gate and up, and a clamped activation."""

from hq.models.architectures.experts import Experts
from hq.models.architectures.record import LLAMA_NORMS, Architecture, register_architecture
from hq.models.norm_digest import NormNames

register_architecture(
    Architecture(
        norms=NormNames(LLAMA_NORMS),
        experts=Experts(
            count="num_local_experts",
            width="intermediate_size",
            transposed=True,
            router="mlp.router",
        ),
    ),
    "gpt_oss",
)
