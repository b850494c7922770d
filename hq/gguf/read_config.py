"""The transformers config that computes what llama.cpp computes from a GGUF file's metadata.

transformers' own GGUF reader drops most of it: rotary scaling, biases, soft caps, windows, query
scales. Defaults here are llama.cpp's (`load_hparams` and `load_arch_hparams` of each model): they
apply where a file leaves a key out. One `add` line per architecture.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.layout import ARCHITECTURES
from hq.registry import Registry

Fields = dict[str, Any]

ROPE_TENSORS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
"""Tensors that the config carries, as they are no weights of transformers' models."""

# What changes nothing at these values, whatever the architecture; None stands for any value.
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
_GEMMA2_27B, _GEMMA3_27B = 46, 62  # layers by which llama.cpp knows a model of another query scale
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")


class GGUFSettings:
    """What a file says of its architecture, and which of it was asked for."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._prefix = f"{file.architecture}."
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A value by its key after the architecture's name."""
        self._read.add(key)
        value = self.file.metadata.get(self._prefix + key, default)
        if isinstance(value, np.ndarray):  # per layer; the file was refused unless all are equal
            return value.tolist()
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number, equal in all layers."""
        value = self.get(key, default)
        return int(value[0] if isinstance(value, list) else value)

    def tensor(self, name: str) -> list[float] | None:
        """The numbers of a vector, where the file has it."""
        return self.file.dense(name).ravel().tolist() if name in self.file.tensors else None

    def biased(self, *parts: str) -> bool:
        """Whether any layer has a bias at one of these projections."""
        layers = range(self.file.n_layers)
        names = {f"blk.{layer}.{part}.bias" for layer in layers for part in parts}
        return not names.isdisjoint(self.file.tensors)

    def unread(self) -> tuple[str, ...]:
        """Keys of the architecture that nobody asked for, unless they change nothing."""
        keys = [key for key in self.file.metadata if key.startswith(self._prefix)]
        return tuple(
            key
            for key in keys
            if (name := key.removeprefix(self._prefix)) not in self._read
            and not (name in _NEUTRAL and _NEUTRAL[name] in (None, self.file.metadata[key]))
        )

    def refusal(self, key: str, reason: str) -> HQError:
        """The sentence for a setting that transformers' model does not have."""
        return HQError(
            f"{self.file.path} has {self._prefix}{key} = {self.get(key)!r}, {reason}: name the "
            "model's checkpoint instead."
        )


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """A config, and the keys of the file that it does not carry.

    What such a key does is not known here: a file with one has to be compared with llama.cpp.
    """

    config: PretrainedConfig
    unread: tuple[str, ...]


READERS: Registry[Callable[[GGUFSettings], Fields]] = Registry("GGUF architecture to dequantize")


def config_of(file: GGUFFile) -> ReadConfig:
    """The config of a file's model in transformers.

    Raises HQError for an architecture without a reader, and a setting that transformers' model of
    the architecture does not have.
    """
    said = GGUFSettings(file)
    fields = _special_tokens(file) | READERS[file.architecture](said)
    name = file.metadata.get("general.name")
    if isinstance(name, str):
        fields["_model_name_or_path"] = name
    config = AutoConfig.for_model(ARCHITECTURES[file.architecture].model_type, **fields)
    return ReadConfig(config, said.unread())


def _special_tokens(file: GGUFFile) -> Fields:
    """Ids by transformers' names; llama.cpp has three places for what ends an answer."""
    ids = {
        name: file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in {
            "bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot",
            "eom": "eom",
        }.items()
    }  # fmt: skip
    ends = dict.fromkeys(ids.pop(key) for key in ("eos", "eot", "eom"))
    listed = [end for end in ends if end is not None]
    fields: Fields = {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    fields.setdefault("bos_token_id", None)  # a config's own default is some other model's
    fields.setdefault("pad_token_id", None)
    return fields | {"eos_token_id": listed if len(listed) > 1 else next(iter(listed), None)}


def _llama(said: GGUFSettings) -> Fields:
    return (
        _common(said)
        | _within_window(said)
        | {
            "attention_bias": said.biased(*_ATTENTION),
            "mlp_bias": said.biased(*_MLP),
            "rope_parameters": _rope(said),
        }
    )


def _qwen2(said: GGUFSettings) -> Fields:
    return _common(said) | _within_window(said) | {"rope_parameters": _rope(said)}


def _qwen3(said: GGUFSettings) -> Fields:
    return _qwen2(said) | {"attention_bias": said.biased(*_ATTENTION)}


def _gemma2(said: GGUFSettings) -> Fields:
    rope = _rope(said)
    local = said.get("rope.freq_base_swa", rope["rope_theta"])
    if local != rope["rope_theta"]:
        raise said.refusal("rope.freq_base_swa", "and transformers' Gemma 2 has one base")
    return (
        _gemma(said, _GEMMA2_27B)
        | _window(said, said.get("attention.sliding_window", 4096), 2)
        | {
            "attn_logit_softcapping": said.get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": said.get("final_logit_softcapping", 30.0),
            "rope_parameters": rope,
        }
    )


def _gemma3(said: GGUFSettings) -> Fields:
    local = {"rope_type": "default", "rope_theta": said.get("rope.freq_base_swa", 10000.0)}
    return (
        _gemma(said, _GEMMA3_27B)
        | _window(said, said.get("attention.sliding_window", 0), 6)
        | {
            "final_logit_softcapping": said.get("final_logit_softcapping", 0.0) or None,
            "rope_parameters": {"full_attention": _rope(said), "sliding_attention": local},
        }
    )


def _gemma(said: GGUFSettings, layers_of_27b: int) -> Fields:
    """What Gemma 2 and 3 share; the scale of queries follows from other sizes."""
    fields = _common(said)
    scalar = fields["head_dim"]
    if said.file.n_layers == layers_of_27b:
        scalar = fields["hidden_size"] // fields["num_attention_heads"]
    return fields | {
        "attention_bias": said.biased(*_ATTENTION),
        "query_pre_attn_scalar": scalar,
    }


def _phi3(said: GGUFSettings) -> Fields:
    fields = _common(said, partial=True)
    rope = _rope(said) | {"partial_rotary_factor": _rotated(said) / fields.pop("head_dim")}
    context = said.get("rope.scaling.original_context_length", fields["max_position_embeddings"])
    # llama.cpp runs it with full attention, and refers to the missing pattern in its files.
    return fields | {
        "sliding_window": said.get("attention.sliding_window") or None,
        "original_max_position_embeddings": context,
        "rope_parameters": rope,
    }


def _gpt2(said: GGUFSettings) -> Fields:
    return {
        "vocab_size": said.file.vocabulary,
        "n_positions": said.size("context_length"),
        "n_embd": said.size("embedding_length"),
        "n_inner": said.size("feed_forward_length"),
        "n_layer": said.size("block_count"),
        "n_head": said.size("attention.head_count"),
        "layer_norm_epsilon": said.get("attention.layer_norm_epsilon"),
        "tie_word_embeddings": "output.weight" not in said.file.tensors,
    }


for _name, _reader in {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
}.items():
    READERS.add(_name, _reader)


def _common(said: GGUFSettings, partial: bool = False) -> Fields:
    """Sizes that decoders with RMS norms share; `partial` allows a part of a head to be rotated."""
    heads, d_model = said.size("attention.head_count"), said.size("embedding_length")
    head_dim = said.size("attention.key_length", d_model // heads)
    if said.size("attention.value_length", d_model // heads) != head_dim:
        raise said.refusal("attention.value_length", "and its keys are of another width")
    if not partial and _rotated(said) != head_dim:
        raise said.refusal("rope.dimension_count", f"not the whole head of {head_dim}")
    return {
        "vocab_size": said.file.vocabulary,
        "max_position_embeddings": said.size("context_length"),
        "hidden_size": d_model,
        "intermediate_size": said.size("feed_forward_length"),
        "num_hidden_layers": said.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": said.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": said.get("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in said.file.tensors,
    }


def _rotated(said: GGUFSettings) -> int:
    heads, d_model = said.size("attention.head_count"), said.size("embedding_length")
    head_dim = said.size("attention.key_length", d_model // heads)
    return said.size("rope.dimension_count", head_dim)


def _within_window(said: GGUFSettings) -> Fields:
    """The context of an architecture that llama.cpp runs with full attention.

    A text no longer than the sliding window never meets it, so the context ends with the window.
    """
    window = said.get("attention.sliding_window") or math.inf
    return {"max_position_embeddings": min(said.size("context_length"), window)}


def _window(said: GGUFSettings, window: int, period: int) -> Fields:
    """Sliding attention in all layers but every `period`-th, or where the file says."""
    layers = said.file.n_layers
    pattern = said.get("attention.sliding_window_pattern", period)
    if not isinstance(pattern, list):
        pattern = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    slides = [bool(window and slide) for slide in pattern[:layers]]
    types = {True: "sliding_attention", False: "full_attention"}
    # A window that no layer uses is given some width all the same, as the config needs one.
    return {
        "sliding_window": window or said.size("context_length"),
        "layer_types": [types[slide] for slide in slides],
    }


def _rope(said: GGUFSettings) -> Fields:
    """Rotary parameters of the layers with full attention."""
    kind = said.get("rope.scaling.type", "linear")
    factor = said.get("rope.scaling.factor", said.get("rope.scale_linear", 0.0)) or 1.0
    if kind not in _SCALED:
        raise said.refusal("rope.scaling.type", f"and hq reads {', '.join(sorted(_SCALED))}")
    base: Fields = {"rope_theta": said.get("rope.freq_base", 10000.0)}
    return base | _SCALED[kind](said, 1.0 if kind == "none" else factor)


def _linear(said: GGUFSettings, factor: float) -> Fields:
    """One factor for all frequencies, or the tensor `rope_freqs`, one per frequency."""
    factors = said.tensor("rope_freqs.weight")
    if factors is not None:
        return _of_factors(said, factors, factor)
    if factor == 1.0:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _of_factors(said: GGUFSettings, factors: list[float], factor: float) -> Fields:
    """Llama 3's rule where it gives these divisors of frequencies, else the divisors themselves."""
    theta = said.get("rope.freq_base", 10000.0)
    named: Fields = {"factor": round(max(factors), 4), **_LLAMA3}
    named["original_max_position_embeddings"] = _LLAMA3_CONTEXT
    expected = _llama3_factors(2 * len(factors), theta, named)
    if factor == 1.0 and np.allclose(expected, factors, rtol=1e-5):
        return {"rope_type": "llama3", **named}
    return _longrope(said, [factor * f for f in factors], [factor * f for f in factors], 1.0)


def _llama3_factors(head_dim: int, theta: float, rope: Fields) -> np.ndarray[Any, Any]:
    """What Llama 3's rule divides each frequency by (`_compute_llama3_parameters` there)."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] / wavelength
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    divisors: np.ndarray[Any, Any] = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return divisors


def _longrope(
    said: GGUFSettings, short: list[float] | None, long: list[float] | None, attention: float
) -> Fields:
    if short is None or long is None:
        raise said.refusal("rope.scaling.type", "and lacks the tensors rope_factors_*.weight")
    context = said.get("rope.scaling.original_context_length", said.size("context_length"))
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": 1.0,  # or transformers warns; `attention_factor` is what counts
        "attention_factor": attention,
        "original_max_position_embeddings": context,
    }


def _factors_by_length(said: GGUFSettings, factor: float) -> Fields:
    """Divisors for texts within the original context, and others for longer ones."""
    short, long = (said.tensor(f"rope_factors_{name}.weight") for name in ("short", "long"))
    attention = said.get("rope.scaling.attn_factor", 1.0)
    rope = _longrope(said, short, long, attention)
    scaled = {key: [factor * f for f in rope[key]] for key in ("short_factor", "long_factor")}
    return rope | scaled


def _yarn(said: GGUFSettings, factor: float) -> Fields:
    """YaRN with llama.cpp's own betas, 32 and 1, which these architectures cannot change."""
    if said.tensor("rope_freqs.weight") is not None:
        raise said.refusal("rope.scaling.type", "and rope_freqs.weight beside it")
    extra = said.get("rope.scaling.attn_factor", 1.0)
    context = said.get("rope.scaling.original_context_length", said.size("context_length"))
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
