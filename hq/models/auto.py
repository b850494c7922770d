"""The class of transformers that runs a checkpoint: a language model or a multimodal wrapper."""

import copy
from typing import TYPE_CHECKING, Any

import torch

from hq.errors import HQError

if TYPE_CHECKING:  # the import takes seconds
    from transformers import PretrainedConfig, PreTrainedModel


def model_class(config: "PretrainedConfig") -> Any:
    """Return the class with a language-model head for this config, multimodal wrappers included.

    Raises HQError if transformers has no such class for the model type.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    raise HQError(
        f"transformers has no language model for the model type {config.model_type!r}: name a "
        "checkpoint of a decoder that generates text."
    )


def context_length(config: "PretrainedConfig") -> int | None:
    """Return the largest number of tokens in a text, or None if the config has no limit.

    The configs of models with scaled rotary embeddings state the scaled length.
    """
    text = config.get_text_config()
    for name in ("max_position_embeddings", "max_seq_len"):
        limit = getattr(text, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def is_wrapper(model: Any) -> bool:
    """Whether a loaded model is multimodal, with the language model as a part."""
    return model.config.get_text_config() is not model.config


def without_weights(config: "PretrainedConfig") -> "PreTrainedModel":
    """Build the model on the meta device: all modules, no weights.

    Raises HQError if the model cannot be built from the config.
    """
    bare = copy.deepcopy(config)
    for part in (bare, bare.get_text_config()):
        vars(part).pop("quantization_config", None)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = model_class(bare)._from_config(
                bare, attn_implementation="eager"
            )
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise HQError(
            f"A model of type {config.model_type!r} cannot be built from its config "
            f"({type(error).__name__}: {error}): copy config.json again."
        ) from error
    return model.eval()
