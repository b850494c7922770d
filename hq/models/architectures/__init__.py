"""One record per model architecture, one file per family, and a detector for other dense decoders.

A record says where the FFN is and how GGUF stores the model; loading and running models is in
`hq.precisions` and `hq.backends`.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

from hq.models.architectures import (
    cohere,
    gemma,
    glm,
    gpt,
    gpt_oss,
    llama,
    mixtral,
    olmo,
    opt,
    phi,
    qwen,
    ungated,
)
from hq.models.architectures.detection import detect
from hq.models.architectures.record import GGUF_LAYOUTS, GGUF_MIXTURES, RECORDS, Architecture

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

__all__ = [
    "GGUF_LAYOUTS",
    "GGUF_MIXTURES",
    "RECORDS",
    "Architecture",
    "architecture_of",
    "cohere",
    "down_projections",
    "gemma",
    "glm",
    "gpt",
    "gpt_oss",
    "llama",
    "mixtral",
    "olmo",
    "opt",
    "phi",
    "qwen",
    "ungated",
]


def architecture_of(config: "PretrainedConfig") -> Architecture:
    """Return the architecture of a model from its config, which may be multimodal.

    Records are found by the `model_type` of the language model. A model type without a record is
    detected from the model's structure, with a warning. Raises HQError if detection fails.
    """
    model_type = config.get_text_config().model_type
    return RECORDS[model_type] if model_type in RECORDS else detect(config)


def down_projections(decoder: nn.Module, architecture: Architecture) -> list[nn.Module]:
    """Return the down projection of every layer in order; of a mixture, the whole block."""
    layers = decoder.get_submodule(architecture.layers)
    assert isinstance(layers, nn.ModuleList)
    experts = architecture.experts
    if experts is None:
        return [layer.get_submodule(architecture.down) for layer in layers]
    config: Any = decoder.config
    return [
        layer.get_submodule(experts.block if experts.is_mixture(config, i) else architecture.down)
        for i, layer in enumerate(layers)
    ]
