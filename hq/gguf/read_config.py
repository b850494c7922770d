"""Build the transformers config that computes the same as llama.cpp does from a GGUF file.

transformers' own GGUF reader drops most settings: rotary scaling, biases, soft caps, windows, query
scales. The defaults here are those of llama.cpp (`load_hparams` and `load_arch_hparams` of each
model), for keys that a file omits. `READERS` has one reader per architecture.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.models.architectures import GGUF_LAYOUTS
from hq.registry import Registry

Fields = dict[str, Any]

ROPE_TENSORS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
"""Tensors that become part of the config, as transformers' models have no such weights."""

# Keys that have no effect at these values in any architecture; None means at any value.
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
_GEMMA2_27B, _GEMMA3_27B = 46, 62  # numbers of layers at which llama.cpp uses another query scale
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")


class GGUFSettings:
    """The architecture's settings in a file, and which of them were read."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._prefix = f"{file.architecture}."
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A value, by its key without the architecture's name."""
        self._read.add(key)
        value = self.file.metadata.get(self._prefix + key, default)
        if isinstance(value, np.ndarray):  # one item per layer; GGUFFile checks sizes
            return value.tolist()
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """An integer, equal in all layers."""
        value = self.get(key, default)
        return int(value[0] if isinstance(value, list) else value)

    def tensor(self, name: str) -> list[float] | None:
        """The numbers of a vector, or None if the file does not have it."""
        return self.file.dense(name).ravel().tolist() if name in self.file.tensors else None

    def biased(self, *parts: str) -> bool:
        """Whether a layer has a bias at one of these projections."""
        layers = range(self.file.n_layers)
        names = {f"blk.{layer}.{part}.bias" for layer in layers for part in parts}
        return not names.isdisjoint(self.file.tensors)

    def unread(self) -> tuple[str, ...]:
        """Keys of the architecture that were not read, except those without effect."""
        keys = [key for key in self.file.metadata if key.startswith(self._prefix)]
        return tuple(
            key
            for key in keys
            if (name := key.removeprefix(self._prefix)) not in self._read
            and not (name in _NEUTRAL and _NEUTRAL[name] in (None, self.file.metadata[key]))
        )

    def unsupported(self, key: str, reason: str) -> HQError:
        """Return the error for a setting that transformers' model does not support."""
        return HQError(
            f"{self.file.path} has {self._prefix}{key} = {self.get(key)!r}, {reason}: name the "
            "model's checkpoint instead."
        )


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """A config, and the keys of the file that it does not represent.

    The effect of such a key is unknown, so a file that has one must be compared with llama.cpp.
    """

    config: PretrainedConfig
    unread: tuple[str, ...]


READERS: Registry[Callable[[GGUFSettings], Fields]] = Registry("GGUF architecture to dequantize")


def config_of(file: GGUFFile) -> ReadConfig:
    """The transformers config of the model in a file.

    Raises HQError if the architecture has no reader, or if transformers' model does not support a
    setting.
    """
    settings = GGUFSettings(file)
    fields = _special_tokens(file) | READERS[file.architecture](settings)
    name = file.metadata.get("general.name")
    if isinstance(name, str):
        fields["_model_name_or_path"] = name
    config = AutoConfig.for_model(GGUF_LAYOUTS[file.architecture].model_type, **fields)
    return ReadConfig(config, settings.unread())


def _special_tokens(file: GGUFFile) -> Fields:
    """Ids by transformers' names; llama.cpp has three keys for tokens that end an answer."""
    ids = {
        name: file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in {
            "bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot",
            "eom": "eom",
        }.items()
    }  # fmt: skip
    distinct = dict.fromkeys(ids.pop(key) for key in ("eos", "eot", "eom"))
    ends = [end for end in distinct if end is not None]
    fields: Fields = {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    fields.setdefault("bos_token_id", None)  # not the config's default, which is another model's
    fields.setdefault("pad_token_id", None)
    return fields | {"eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}


def _llama(settings: GGUFSettings) -> Fields:
    return (
        _common(settings)
        | _within_window(settings)
        | {
            "attention_bias": settings.biased(*_ATTENTION),
            "mlp_bias": settings.biased(*_MLP),
            "rope_parameters": _rope(settings),
        }
    )


def _qwen2(settings: GGUFSettings) -> Fields:
    return _common(settings) | _within_window(settings) | {"rope_parameters": _rope(settings)}


def _qwen3(settings: GGUFSettings) -> Fields:
    return _qwen2(settings) | {"attention_bias": settings.biased(*_ATTENTION)}


def _gemma2(settings: GGUFSettings) -> Fields:
    rope = _rope(settings)
    local = settings.get("rope.freq_base_swa", rope["rope_theta"])
    if local != rope["rope_theta"]:
        raise settings.unsupported(
            "rope.freq_base_swa", "but transformers' Gemma 2 has one base for all layers"
        )
    return (
        _gemma(settings, _GEMMA2_27B)
        | _window(settings, settings.get("attention.sliding_window", 4096), 2)
        | {
            "attn_logit_softcapping": settings.get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": settings.get("final_logit_softcapping", 30.0),
            "rope_parameters": rope,
        }
    )


def _gemma3(settings: GGUFSettings) -> Fields:
    local = {"rope_type": "default", "rope_theta": settings.get("rope.freq_base_swa", 10000.0)}
    return (
        _gemma(settings, _GEMMA3_27B)
        | _window(settings, settings.get("attention.sliding_window", 0), 6)
        | {
            "final_logit_softcapping": settings.get("final_logit_softcapping", 0.0) or None,
            "rope_parameters": {"full_attention": _rope(settings), "sliding_attention": local},
        }
    )


def _gemma(settings: GGUFSettings, layers_of_27b: int) -> Fields:
    """Fields of Gemma 2 and 3; the query scale follows from other sizes, as in llama.cpp."""
    fields = _common(settings)
    scalar = fields["head_dim"]
    if settings.file.n_layers == layers_of_27b:
        scalar = fields["hidden_size"] // fields["num_attention_heads"]
    return fields | {
        "attention_bias": settings.biased(*_ATTENTION),
        "query_pre_attn_scalar": scalar,
    }


def _phi3(settings: GGUFSettings) -> Fields:
    fields = _common(settings, partial=True)
    rope = _rope(settings) | {"partial_rotary_factor": _rotated(settings) / fields.pop("head_dim")}
    context = settings.get("rope.scaling.original_context_length", settings.size("context_length"))
    # llama.cpp runs Phi-3 with full attention, as its files do not have the pattern of windows.
    return fields | {
        "sliding_window": settings.get("attention.sliding_window") or None,
        "original_max_position_embeddings": context,
        "rope_parameters": rope,
    }


def _gpt2(settings: GGUFSettings) -> Fields:
    return {
        "vocab_size": settings.file.vocabulary,
        "n_positions": settings.size("context_length"),
        "n_embd": settings.size("embedding_length"),
        "n_inner": settings.size("feed_forward_length"),
        "n_layer": settings.size("block_count"),
        "n_head": settings.size("attention.head_count"),
        "layer_norm_epsilon": settings.get("attention.layer_norm_epsilon"),
        "tie_word_embeddings": "output.weight" not in settings.file.tensors,
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


def _common(settings: GGUFSettings, partial: bool = False) -> Fields:
    """Fields of all decoders with RMS norms; `partial` allows partial rotary embeddings."""
    heads, d_model = settings.size("attention.head_count"), settings.size("embedding_length")
    head_dim = settings.size("attention.key_length", d_model // heads)
    if settings.size("attention.value_length", d_model // heads) != head_dim:
        raise settings.unsupported("attention.value_length", "but its keys have another width")
    if not partial and _rotated(settings) != head_dim:
        raise settings.unsupported(
            "rope.dimension_count", f"but its heads have {head_dim} dimensions"
        )
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


def _rotated(settings: GGUFSettings) -> int:
    """Number of rotated dimensions of a head."""
    heads, d_model = settings.size("attention.head_count"), settings.size("embedding_length")
    head_dim = settings.size("attention.key_length", d_model // heads)
    return settings.size("rope.dimension_count", head_dim)


def _within_window(settings: GGUFSettings) -> Fields:
    """The context of an architecture that llama.cpp runs with full attention.

    It ends with the sliding window, as full attention differs from it on longer texts.
    """
    window = settings.get("attention.sliding_window") or math.inf
    return {"max_position_embeddings": min(settings.size("context_length"), window)}


def _window(settings: GGUFSettings, window: int, period: int) -> Fields:
    """Sliding attention in all layers but every `period`-th, or as the file's pattern says."""
    layers = settings.file.n_layers
    pattern = settings.get("attention.sliding_window_pattern", period)
    if not isinstance(pattern, list):
        pattern = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    slides = [bool(window and slide) for slide in pattern[:layers]]
    types = {True: "sliding_attention", False: "full_attention"}
    # The config requires a width even if no layer uses the window.
    return {
        "sliding_window": window or settings.size("context_length"),
        "layer_types": [types[slide] for slide in slides],
    }


def _rope(settings: GGUFSettings) -> Fields:
    """Rotary parameters of the layers with full attention."""
    kind = settings.get("rope.scaling.type", "linear")
    factor = settings.get("rope.scaling.factor", settings.get("rope.scale_linear", 0.0)) or 1.0
    if kind not in _SCALINGS:
        raise settings.unsupported(
            "rope.scaling.type", f"but hq reads {', '.join(sorted(_SCALINGS))}"
        )
    base: Fields = {"rope_theta": settings.get("rope.freq_base", 10000.0)}
    return base | _SCALINGS[kind](settings, 1.0 if kind == "none" else factor)


def _linear(settings: GGUFSettings, factor: float) -> Fields:
    """One factor for all frequencies, or one per frequency if there is a tensor `rope_freqs`."""
    factors = settings.tensor("rope_freqs.weight")
    if factors is not None:
        return _by_frequency(settings, factors, factor)
    if factor == 1.0:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _by_frequency(settings: GGUFSettings, factors: list[float], factor: float) -> Fields:
    """Llama 3's rule if it results in these divisors of frequencies, else the divisors."""
    theta = settings.get("rope.freq_base", 10000.0)
    llama3: Fields = {"factor": round(max(factors), 4), **_LLAMA3}
    llama3["original_max_position_embeddings"] = _LLAMA3_CONTEXT
    expected = _llama3_factors(2 * len(factors), theta, llama3)
    if factor == 1.0 and np.allclose(expected, factors, rtol=1e-5):
        return {"rope_type": "llama3", **llama3}
    return _longrope(settings, [factor * f for f in factors], [factor * f for f in factors], 1.0)


def _llama3_factors(head_dim: int, theta: float, rope: Fields) -> np.ndarray[Any, Any]:
    """Llama 3's divisor of each frequency (transformers' `_compute_llama3_parameters`)."""
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
        raise settings.unsupported(
            "rope.scaling.type", "but lacks the tensors rope_factors_*.weight"
        )
    context = settings.get("rope.scaling.original_context_length", settings.size("context_length"))
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": 1.0,  # unused, as `attention_factor` is set, but transformers warns without it
        "attention_factor": attention,
        "original_max_position_embeddings": context,
    }


def _factors_by_length(settings: GGUFSettings, factor: float) -> Fields:
    """One set of divisors for texts within the original context, another for longer texts."""
    short, long = (settings.tensor(f"rope_factors_{name}.weight") for name in ("short", "long"))
    attention = settings.get("rope.scaling.attn_factor", 1.0)
    rope = _longrope(settings, short, long, attention)
    scaled = {key: [factor * f for f in rope[key]] for key in ("short_factor", "long_factor")}
    return rope | scaled


def _yarn(settings: GGUFSettings, factor: float) -> Fields:
    """YaRN with llama.cpp's betas, 32 and 1, which these architectures cannot change."""
    if settings.tensor("rope_freqs.weight") is not None:
        raise settings.unsupported("rope.scaling.type", "but also the tensor rope_freqs.weight")
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


_SCALINGS: dict[str, Callable[[GGUFSettings, float], Fields]] = {
    "none": _linear,
    "linear": _linear,
    "yarn": _yarn,
    "longrope": _factors_by_length,
}
