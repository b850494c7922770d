"""How llama.cpp runs each architecture: what it must be told, and which weights it keeps otherwise.

One `add` line an architecture, by the model type of a checkpoint's text config. Whatever a config
asks for that llama.cpp would silently compute otherwise is refused here, by name.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from hq.errors import HQError
from hq.registry import Registry

Value = bool | int | float | str | list[str] | list[int] | list[float]
Metadata = dict[str, Value]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Conversion:
    """How one of transformers' models becomes one of llama.cpp's.

    `architecture` is llama.cpp's name of it.

    `metadata` gives its keys, without the architecture's prefix, or refuses the config (HQError).
    `edit` makes llama.cpp's weights of transformers', in the same shape; it is told the part's name
    ("attn_q", "output_norm", …). `made` gives tensors, by name, that a checkpoint does not have.
    `biases` are the parts whose bias llama.cpp reads.
    """

    architecture: str
    metadata: Callable[[PretrainedConfig], Metadata]
    edit: Callable[[str, Weights, PretrainedConfig], Weights]
    made: Callable[[PretrainedConfig], dict[str, Weights]] = lambda _: {}
    biases: frozenset[str] = frozenset()


_CONVERSIONS: Registry[Conversion] = Registry("conversion to GGUF")


def conversion_of(model_type: str) -> Conversion:
    """The conversion by the `model_type` of a text config.

    Raises HQError for a type that nobody has described yet.
    """
    if model_type not in _CONVERSIONS:
        raise HQError(
            f"Model type {model_type!r} cannot be written as GGUF: known are "
            f"{', '.join(sorted(_CONVERSIONS))}; add a line to hq/gguf/conversion.py that "
            "says which keys and which order of weights llama.cpp expects of it."
        )
    return _CONVERSIONS[model_type]


def _llama(config: PretrainedConfig) -> Metadata:
    """Llama, and Mistral, which llama.cpp runs as one."""
    rope = _rope(config, config.rope_parameters, ("default", "linear", "llama3"))
    return _common(config, "silu") | _without_window(config) | rope


def _qwen2(config: PretrainedConfig) -> Metadata:
    if config.num_attention_heads * _head_dim(config) != config.hidden_size:
        raise _refusal(config, f"head_dim {_head_dim(config)}", "hidden_size / num_attention_heads")
    return _qwen3(config)


def _qwen3(config: PretrainedConfig) -> Metadata:
    rope = _rope(config, config.rope_parameters, ("default", "linear"))
    return _common(config, "silu") | _without_window(config) | rope


def _gemma2(config: PretrainedConfig) -> Metadata:
    caps = {
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }
    for key, cap in caps.items():
        if not cap:
            raise _refusal(config, f"{key} {cap}", "a number")
    _require_pattern(config, 2)
    if math.frexp(_query_factor(config, _GEMMA2_27B))[0] != 0.5:  # no power of two: it would round
        scalar = config.query_pre_attn_scalar
        raise _refusal(config, f"query_pre_attn_scalar {scalar}", "head_dim")
    return (
        _common(config, "gelu_pytorch_tanh")
        | {"attention.sliding_window": config.sliding_window}
        | _rope(config, config.rope_parameters, ("default",))
        | {key: float(cap) for key, cap in caps.items()}
    )


def _gemma3(config: PretrainedConfig) -> Metadata:
    """Gemma 3's language model, alone or inside the multimodal one."""
    if config.attn_logit_softcapping:
        cap = config.attn_logit_softcapping
        raise _refusal(config, f"attn_logit_softcapping {cap}", "none")
    if config.use_bidirectional_attention:
        raise _refusal(config, "bidirectional attention", "causal attention")
    _require_pattern(config, 6)
    ropes = config.rope_parameters
    local = _rope(config, ropes["sliding_attention"], ("default",))
    softcap = config.final_logit_softcapping
    return (
        _common(config, "gelu_pytorch_tanh")
        | {"attention.sliding_window": config.sliding_window}
        | _rope(config, ropes["full_attention"], ("default", "linear"))
        | {"rope.freq_base_swa": local["rope.freq_base"]}
        | ({"final_logit_softcapping": float(softcap)} if softcap else {})
    )


def _common(config: PretrainedConfig, activation: str) -> Metadata:
    """Keys that every architecture has."""
    found = getattr(config, "hidden_activation", None) or config.hidden_act
    if found != activation:
        raise _refusal(config, f"activation {found}", activation)
    head_dim = _head_dim(config)
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_dim,
    }


def _without_window(config: PretrainedConfig) -> Metadata:
    """The context of an architecture that llama.cpp always runs with full attention.

    A text no longer than the sliding window never meets it, so the context ends where the window
    does: within `context_length` tokens llama.cpp computes what the model does, and no further.
    """
    types = getattr(config, "layer_types", None)
    slides = types is None or "sliding_attention" in types
    window = getattr(config, "sliding_window", None) if slides else None
    return {"context_length": min(config.max_position_embeddings, window or math.inf)}


def _rope(
    config: PretrainedConfig, parameters: Mapping[str, float | str], allowed: tuple[str, ...]
) -> Metadata:
    """Base and linear scaling; llama3's scaling is a tensor, see `_llama3_factors`."""
    kind = str(parameters.get("rope_type", "default"))
    if kind not in allowed:
        raise _refusal(config, f"rope scaling {kind!r}", " or ".join(allowed))
    if float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _refusal(config, "partial rotary embeddings", "whole ones")
    base: Metadata = {"rope.freq_base": float(parameters["rope_theta"])}
    if kind != "linear":
        return base
    return base | {"rope.scaling.type": kind, "rope.scaling.factor": float(parameters["factor"])}


def _llama3_factors(config: PretrainedConfig) -> dict[str, Weights]:
    """What llama.cpp divides each rotary frequency by, [head_dim / 2], for rope type llama3."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return {}
    head_dim, factor = _head_dim(config), rope["factor"]
    steps = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelength = 2 * np.pi * np.float32(rope["rope_theta"]) ** steps
    turns = rope["original_max_position_embeddings"] / wavelength
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)}


def _as_it_is(_: str, weights: Weights, __: PretrainedConfig) -> Weights:
    return weights


def _interleaved(part: str, weights: Weights, config: PretrainedConfig) -> Weights:
    """Rows of Q and K in llama.cpp's order: it turns neighbours, transformers turns halves."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    if part not in heads:
        return weights
    halves = weights.reshape(heads[part], 2, -1, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _gemma2_weights(part: str, weights: Weights, config: PretrainedConfig) -> Weights:
    """1 + w for norms; Q carries what llama.cpp's fixed query scale leaves out."""
    if part == "attn_q":
        return weights * np.float32(_query_factor(config, _GEMMA2_27B))
    return weights + 1 if part.endswith("norm") else weights


def _gemma3_weights(part: str, weights: Weights, config: PretrainedConfig) -> Weights:
    """1 + w for norms; Q's norm carries what llama.cpp's fixed query scale leaves out."""
    if part == "attn_q_norm":
        return (weights + 1) * np.float32(_query_factor(config, _GEMMA3_27B))
    return weights + 1 if part.endswith("norm") else weights


# llama.cpp tells a 27B model, whose queries it scales otherwise, by its number of layers.
_GEMMA2_27B, _GEMMA3_27B = 46, 62


def _query_factor(config: PretrainedConfig, layers_of_27b: int) -> float:
    """The model's scale of queries over llama.cpp's own; 1 for all of Google's models."""
    built_in = _head_dim(config)
    if config.num_hidden_layers == layers_of_27b:
        built_in = config.hidden_size // config.num_attention_heads
    return math.sqrt(built_in / config.query_pre_attn_scalar)


def _require_pattern(config: PretrainedConfig, period: int) -> None:
    """Every `period`-th layer, and no other, has full attention: llama.cpp takes it as given."""
    layers = range(1, config.num_hidden_layers + 1)
    wanted = ["full_attention" if n % period == 0 else "sliding_attention" for n in layers]
    if list(config.layer_types) != wanted:
        raise _refusal(
            config, "its layer_types", f"full attention at every layer {period}, {2 * period}, …"
        )


def _head_dim(config: PretrainedConfig) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _refusal(config: PretrainedConfig, found: str, wanted: str) -> HQError:
    return HQError(
        f"A {config.model_type} model with {found} cannot be written as GGUF: llama.cpp would "
        f"compute it with {wanted}; run it with a precision of the torch backend."
    )


_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_LINEAR = _QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}
for _type in ("llama", "mistral"):
    _CONVERSIONS.add(_type, Conversion("llama", _llama, _interleaved, _llama3_factors, _LINEAR))
_CONVERSIONS.add("qwen2", Conversion("qwen2", _qwen2, _as_it_is, biases=_QKV))
_CONVERSIONS.add("qwen3", Conversion("qwen3", _qwen3, _as_it_is, biases=_QKV))
_CONVERSIONS.add("gemma2", Conversion("gemma2", _gemma2, _gemma2_weights))
_CONVERSIONS.add("gemma3_text", Conversion("gemma3", _gemma3, _gemma3_weights))
