"""Mixtral: Mistral with a mixture of experts in every layer."""

from typing import TYPE_CHECKING

from hq.models.architectures import llama, llama_cpp
from hq.models.architectures.experts import Experts
from hq.models.architectures.gguf_settings import refuse_mixture
from hq.models.architectures.record import (
    GGUF_MIXTURES,
    LLAMA_NORMS,
    Architecture,
    Conversion,
    Layout,
    Metadata,
    register_architecture,
)
from hq.models.norm_digest import NormNames

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

_EXPERTS = Experts(
    count="num_local_experts",
    width="intermediate_size",
    stored="block_sparse_moe.experts.{}.",
    gate="w1",
    up="w3",
    down="w2",
    router="block_sparse_moe.gate",
)


def _metadata(config: "PretrainedConfig") -> Metadata:
    return llama.metadata(config) | llama_cpp.expert_keys(config, _EXPERTS, normalized=True)


register_architecture(
    Architecture(
        norms=NormNames(LLAMA_NORMS),
        conversion=Conversion("llama", _metadata, llama_cpp.interleaved, llama_cpp.llama3_factors),
        experts=_EXPERTS,
    ),
    "mixtral",
)
GGUF_MIXTURES.add(
    "llama",
    Layout("mixtral", refuse_mixture, llama_cpp.NORMS | llama_cpp.EXPERTS, llama_cpp.OUTSIDE),
)
