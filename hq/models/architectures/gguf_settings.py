"""Reads GGUF settings into fields of a transformers config: the parts that families share.

`hq.models.architectures.llama_cpp` is the inverse. The defaults are those of llama.cpp
(`load_hparams` and `load_arch_hparams` of each model) and apply if a file omits a key.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from hq.errors import HQError

Fields = dict[str, Any]
"""Arguments of a config of transformers, by name."""

ATTENTION_PARTS = ("attn_q", "attn_k", "attn_v", "attn_output")
MLP_PARTS = ("ffn_gate", "ffn_up", "ffn_down")

# Settings that have no effect at these values in any architecture; None means at any value.
_NEUTRAL: Mapping[str, object] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "nextn_predict_layers": 0,
    "pooling_type": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.finetuned": None,
    "rope.scaling.original_context_length": None,
    "tensor_data_layout": None,
    "vocab_size": None,
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192


class GGUFContent(Protocol):
    """The parts of an open GGUF file (`hq.gguf.file.GGUFFile`) that are read here."""

    @property
    def path(self) -> Path:
        """Where the file is."""

    @property
    def architecture(self) -> str:
        """Name of the architecture in llama.cpp."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Every key with its value."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Every tensor by its name."""

    @property
    def n_layers(self) -> int:
        """Number of layers."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""

    def dense(self, name: str) -> Float[np.ndarray, "row weight"]:
        """Return a tensor dequantized to float32; a vector has one row."""


class GGUFSettings:
    """The settings of a file's architecture; records which of them have been read."""

    def __init__(self, file: GGUFContent) -> None:
        self.file = file
        self._prefix = f"{file.architecture}."
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `<architecture>.<key>`."""
        self._read.add(key)
        value = self.file.metadata.get(self._prefix + key, default)
        if isinstance(
            value, np.ndarray
        ):  # one value per layer; GGUFFile checks that they are equal
            return value.tolist()
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Return an integer that is the same in all layers."""
        value = self.get(key, default)
        return int(value[0] if isinstance(value, list) else value)

    def tensor(self, name: str) -> list[float] | None:
        """Return the values of a vector, or None if the file lacks it."""
        return self.file.dense(name).ravel().tolist() if name in self.file.tensors else None

    def biased(self, *parts: str) -> bool:
        """Whether one of these projections has a bias in any layer."""
        layers = range(self.file.n_layers)
        names = {f"blk.{layer}.{part}.bias" for layer in layers for part in parts}
        return not names.isdisjoint(self.file.tensors)

    def unread(self) -> tuple[str, ...]:
        """Keys of the architecture that were not read and may have an effect."""
        keys = [key for key in self.file.metadata if key.startswith(self._prefix)]
        return tuple(
            key
            for key in keys
            if (name := key.removeprefix(self._prefix)) not in self._read
            and not (name in _NEUTRAL and _NEUTRAL[name] in (None, self.file.metadata[key]))
        )

    def refusal(self, key: str, reason: str) -> HQError:
        """Return the error for a setting that the model of transformers does not have."""
        return HQError(
            f"{self.file.path} has {self._prefix}{key} = {self.get(key)!r}, {reason}: name the "
            "model's checkpoint instead."
        )


def common_fields(settings: GGUFSettings, partial: bool = False) -> Fields:
    """Fields that all decoders with RMSNorm have.

    `partial` allows rotary embeddings that cover only a part of an attention head.
    """
    heads, d_model = settings.size("attention.head_count"), settings.size("embedding_length")
    head_dim = settings.size("attention.key_length", d_model // heads)
    if settings.size("attention.value_length", d_model // heads) != head_dim:
        raise settings.refusal("attention.value_length", "and its keys are of another width")
    if not partial and rotated_width(settings) != head_dim:
        raise settings.refusal("rope.dimension_count", f"not the whole head of {head_dim}")
    return {
        "vocab_size": settings.file.vocabulary,
        "max_position_embeddings": settings.size("context_length"),
        "hidden_size": d_model,
        "intermediate_size": settings.size("feed_forward_length"),
        "num_hidden_layers": settings.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": settings.get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in settings.file.tensors,
    }


def refuse_mixture(settings: GGUFSettings) -> Fields:
    """Raise HQError: hq runs mixtures in llama.cpp, and rebuilds no checkpoint from their files."""
    raise settings.refusal("expert_count", "and hq makes no checkpoint of a mixture of experts")


def rotated_width(settings: GGUFSettings) -> int:
    """Return how many values of an attention head the rotary embedding covers."""
    heads, d_model = settings.size("attention.head_count"), settings.size("embedding_length")
    head_dim = settings.size("attention.key_length", d_model // heads)
    return settings.size("rope.dimension_count", head_dim)


def fields_within_window(settings: GGUFSettings) -> Fields:
    """Fields of an architecture that llama.cpp runs with full attention.

    Full and sliding attention agree on texts that fit into the window, so the context length is
    limited to the window.
    """
    window = settings.get("attention.sliding_window") or math.inf
    return {"max_position_embeddings": min(settings.size("context_length"), window)}


def sliding_window(settings: GGUFSettings, window: int, period: int) -> Fields:
    """Sliding attention except in every `period`-th layer, unless the file has another pattern."""
    layers = settings.file.n_layers
    pattern = settings.get("attention.sliding_window_pattern", period)
    if not isinstance(pattern, list):
        pattern = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    slides = [bool(window and slide) for slide in pattern[:layers]]
    types = {True: "sliding_attention", False: "full_attention"}
    # The config needs a width even if no layer uses the window.
    return {
        "sliding_window": window or settings.size("context_length"),
        "layer_types": [types[slide] for slide in slides],
    }


def rope_parameters(settings: GGUFSettings) -> Fields:
    """Rotary embedding parameters of the layers with full attention."""
    kind = settings.get("rope.scaling.type", "linear")
    factor = settings.get("rope.scaling.factor", settings.get("rope.scale_linear", 0.0)) or 1.0
    if kind not in _SCALED:
        raise settings.refusal("rope.scaling.type", f"and hq reads {', '.join(sorted(_SCALED))}")
    base: Fields = {"rope_theta": settings.get("rope.freq_base", 10000.0)}
    return base | _SCALED[kind](settings, 1.0 if kind == "none" else factor)


def _linear(settings: GGUFSettings, factor: float) -> Fields:
    """One factor for all frequencies, or one per frequency in the tensor `rope_freqs`."""
    factors = settings.tensor("rope_freqs.weight")
    if factors is not None:
        return _of_factors(settings, factors, factor)
    if factor == 1.0:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _of_factors(settings: GGUFSettings, factors: list[float], factor: float) -> Fields:
    """Rope type llama3 if it results in these frequency divisors, else the divisors themselves."""
    theta = settings.get("rope.freq_base", 10000.0)
    named: Fields = {"factor": round(max(factors), 4), **_LLAMA3}
    named["original_max_position_embeddings"] = _LLAMA3_CONTEXT
    expected = _llama3_factors(2 * len(factors), theta, named)
    if factor == 1.0 and np.allclose(expected, factors, rtol=1e-5):
        return {"rope_type": "llama3", **named}
    return _longrope(settings, [factor * f for f in factors], [factor * f for f in factors], 1.0)


def _llama3_factors(head_dim: int, theta: float, rope: Fields) -> np.ndarray[Any, Any]:
    """Frequency divisors of rope type llama3 (transformers' `_compute_llama3_parameters`)."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] / wavelength
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    divisors: np.ndarray[Any, Any] = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return divisors


def _longrope(
    settings: GGUFSettings, short: list[float] | None, long: list[float] | None, attention: float
) -> Fields:
    if short is None or long is None:
        raise settings.refusal("rope.scaling.type", "and lacks the tensors rope_factors_*.weight")
    context = settings.get("rope.scaling.original_context_length", settings.size("context_length"))
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": 1.0,  # transformers warns without it; `attention_factor` is used
        "attention_factor": attention,
        "original_max_position_embeddings": context,
    }


def _factors_by_length(settings: GGUFSettings, factor: float) -> Fields:
    """LongRoPE: frequency divisors for texts within the original context, and for longer texts."""
    short, long = (settings.tensor(f"rope_factors_{name}.weight") for name in ("short", "long"))
    attention = settings.get("rope.scaling.attn_factor", 1.0)
    rope = _longrope(settings, short, long, attention)
    scaled = {key: [factor * f for f in rope[key]] for key in ("short_factor", "long_factor")}
    return rope | scaled


def _yarn(settings: GGUFSettings, factor: float) -> Fields:
    """YaRN with betas 32 and 1, which llama.cpp fixes for these architectures."""
    if settings.tensor("rope_freqs.weight") is not None:
        raise settings.refusal("rope.scaling.type", "and rope_freqs.weight beside it")
    extra = settings.get("rope.scaling.attn_factor", 1.0)
    context = settings.get("rope.scaling.original_context_length", settings.size("context_length"))
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": context,
        "attention_factor": (1 + 0.1 * math.log(factor)) * extra,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }


_SCALED: dict[str, Callable[[GGUFSettings, float], Fields]] = {
    "none": _linear,
    "linear": _linear,
    "yarn": _yarn,
    "longrope": _factors_by_length,
}
