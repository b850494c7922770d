"""Check that a GGUF file has the hyperparameters and tensors of its architecture.

The layouts come from the architecture records. Unknown tensors are rejected, as in llama.cpp: an
optional tensor with a misspelt name would otherwise be ignored silently.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from hq.errors import HQError
from hq.gguf.header import Header, TensorInfo, damaged
from hq.models.architectures import GGUF_LAYOUTS, GGUF_MIXTURES, RECORDS
from hq.models.architectures.llama_cpp import (
    ATTENTION,
    EXPERTS,
    FUSED,
    GATED,
    NORMS,
    SEPARATE,
    SHARED_EXPERT,
)
from hq.models.architectures.record import Layout
from hq.neurons.space import NeuronBlock, NeuronSpace

_OPTIONAL = {"output": "d_model vocabulary"} | dict.fromkeys(
    ("rope_freqs", "rope_factors_long", "rope_factors_short"), "rope"
)
PROJECTIONS = frozenset({*SEPARATE, *FUSED, *ATTENTION, *GATED} - NORMS.keys())
"""Names of the matrices of attention and dense FFNs."""
EXPERT_PROJECTIONS = frozenset({*EXPERTS, *SHARED_EXPERT} - {"ffn_gate_inp", "ffn_gate_inp_shexp"})
"""Names of the matrices of experts, without the routers."""


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """The experts of each layer of a mixture."""

    count: int  # routed experts
    used: int  # that a token is routed to
    width: int  # neurons of a routed expert
    shared_width: int  # neurons of the shared expert; 0 if there is none

    @property
    def widths(self) -> list[int]:
        """Number of neurons of each expert, the shared one last."""
        return [self.width] * self.count + [self.shared_width] * (self.shared_width > 0)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The hyperparameters that determine the shapes of tensors.

    `widths` has the length of each axis, by the names that `Layout` uses.
    """

    n_layers: int
    d_model: int
    d_ff: int
    vocabulary: int
    widths: Mapping[str, int]
    experts: ExpertCounts | None = None  # of each layer; None if layers are dense

    @property
    def space(self) -> NeuronSpace:
        """Where the neurons lie; a shared expert follows the routed ones."""
        if self.experts is None:
            return NeuronSpace.rectangular(self.n_layers, self.d_ff)
        return NeuronSpace(
            tuple(
                NeuronBlock(layer=layer, width=width, expert=expert)
                for layer in range(self.n_layers)
                for expert, width in enumerate(self.experts.widths)
            )
        )


def gguf_architecture(path: Path, header: Header) -> str:
    """llama.cpp's name of the file's architecture. Raises HQError if hq does not know it."""
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise HQError(f"{path} is of type {kind!r}, not a model: name the model's own file.")
    if not header.tensors:
        raise HQError(f"{path} has no tensors: name a model's file, not a vocabulary's.")
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise damaged(path, "it lacks general.architecture")
    list(RECORDS)  # loads the families of other packages, which register their layouts
    known = {*GGUF_LAYOUTS, *GGUF_MIXTURES}
    if name not in known:
        raise HQError(
            f"{path} has the architecture {name!r}, which hq does not know: use one of "
            f"{', '.join(sorted(known))}, or the checkpoint that it was made from."
        )
    has_experts = bool(header.metadata.get(f"{name}.expert_count", 0))
    if name not in (GGUF_MIXTURES if has_experts else GGUF_LAYOUTS):
        what = "a mixture of experts" if has_experts else "dense"
        possible = sorted(GGUF_MIXTURES if has_experts else GGUF_LAYOUTS)
        raise HQError(
            f"{path} is {what} and has the architecture {name!r}, which hq reads only with "
            f"{'dense layers' if has_experts else 'experts'}: use one of {', '.join(possible)}."
        )
    return name


def layout_of(header: Header, name: str) -> Layout:
    """The layout of a file of the architecture `name`, which may have experts."""
    has_experts = bool(header.metadata.get(f"{name}.expert_count", 0))
    return GGUF_MIXTURES[name] if has_experts else GGUF_LAYOUTS[name]


def sizes_of(path: Path, header: Header, name: str, vocabulary: int) -> Sizes:
    """The hyperparameters of the architecture `name`, checked against each other.

    Raises HQError if one is missing, impossible, or contradicts another.
    """
    hparams = _Hyperparameters(path, header, name)
    layout = layout_of(header, name)
    hparams.require_finite()
    hparams.require(hparams.optional("vocab_size", vocabulary) == vocabulary, "vocab_size")
    epsilon = f"attention.{layout.epsilon}"
    hparams.require(0 < hparams.number(epsilon) < 1, epsilon)
    d_model, d_ff = hparams.size("embedding_length"), hparams.size("feed_forward_length")
    heads = hparams.size("attention.head_count")
    kv = hparams.optional("attention.head_count_kv", heads)
    hparams.require(heads % kv == 0, "attention.head_count_kv")
    head = d_model // heads if d_model % heads == 0 else 0  # 0: must be in the file
    key = hparams.optional("attention.key_length", head)
    value = hparams.optional("attention.value_length", head)
    hparams.require(key > 0 and value > 0, "attention.head_count")
    rotated = hparams.optional("rope.dimension_count", key)
    hparams.require(rotated <= key and rotated % 2 == 0, "rope.dimension_count")
    q, k, v = heads * key, kv * key, kv * value
    widths = {"d_model": d_model, "d_ff": d_ff, "2d_ff": 2 * d_ff, "vocabulary": vocabulary}
    widths |= {"q": q, "k": k, "v": v, "qkv": q + k + v, "o": heads * value}
    widths |= {
        "key": key,
        "value": value,
        "rope": rotated // 2,
        "context": hparams.size("context_length"),
    }
    experts = _experts(hparams, layout)
    if experts is not None:
        d_ff = experts.width
        widths |= {
            "experts": experts.count,
            "expert_ff": experts.width,
            "shared_ff": experts.shared_width,
        }
    return Sizes(hparams.n_layers, d_model, d_ff, vocabulary, widths, experts)


def _experts(hparams: "_Hyperparameters", layout: Layout) -> ExpertCounts | None:
    if not hparams.count("expert_count"):
        return None
    count, used = hparams.size("expert_count"), hparams.size("expert_used_count")
    hparams.require(used <= count, "expert_used_count")
    shared = hparams.size(layout.shared_width) if layout.shared_width else 0
    return ExpertCounts(count, used, hparams.size(layout.expert_width), shared)


def require_tensors(path: Path, header: Header, name: str, sizes: Sizes) -> None:
    """Check that the file has every tensor of the architecture, in its shape, and no others.

    Raises HQError with the name of the first tensor that is missing, unknown, or of another shape.
    """
    known: set[str] = set()
    for tensor_name, shape, required in _expected(header, layout_of(header, name), sizes.n_layers):
        tensor = header.tensors.get(tensor_name)
        if tensor is not None:
            _require_form(path, tensor, tuple(sizes.widths[axis] for axis in shape.split()))
            known.add(tensor_name)
        elif required:
            raise damaged(path, f"it lacks the tensor {tensor_name}")
    unknown = header.tensors.keys() - known
    if unknown:
        raise HQError(
            f"{path} has a tensor {min(unknown)!r}, which the architecture {name} does not have: "
            "copy it or convert it again."
        )


def _expected(header: Header, layout: Layout, n_layers: int) -> Iterator[tuple[str, str, bool]]:
    """Name, shape, and whether it is required, of every tensor that the file may have."""
    for name, shape in layout.outside.items():
        yield from _with_bias("", name, shape, layout.biased)
    for name, shape in _OPTIONAL.items():
        yield f"{name}.weight", shape, False
    for layer in range(n_layers):
        prefix = f"blk.{layer}."
        fused = f"{prefix}attn_qkv.weight" in header.tensors
        inside = {**layout.layer, **(FUSED if fused else SEPARATE), **ATTENTION}
        for name, shape in inside.items():
            yield from _with_bias(prefix, name, shape, layout.biased)


def _with_bias(
    prefix: str, name: str, shape: str, biased: frozenset[str]
) -> Iterator[tuple[str, str, bool]]:
    yield f"{prefix}{name}.weight", shape, True
    if name in biased | PROJECTIONS:
        yield f"{prefix}{name}.bias", shape.split()[-1], name in biased


def _require_form(path: Path, tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise HQError(
            f"{path} has {tensor.name} in the shape {tensor.shape}, but its hyperparameters "
            f"require {shape}: convert it again."
        )
    is_float = tensor.type.name in ("F32", "F16", "BF16")
    if not (is_float if len(shape) == 1 else tensor.type.is_weight_type):
        raise damaged(path, f"{tensor.name} has the type {tensor.type.name}")


class _Hyperparameters:
    """The metadata of one architecture, by their keys without its name."""

    def __init__(self, path: Path, header: Header, name: str) -> None:
        self._path, self._prefix, self._metadata = path, f"{name}.", header.metadata
        self.n_layers = 0  # while it is unknown, no size may be an array with one item per layer
        self.n_layers = self.size("block_count")
        self.require(self.n_layers <= len(header.tensors), "block_count")

    def require(self, condition: bool, key: str) -> None:
        """Raises HQError with the full key and its value unless the condition is true."""
        if condition:
            return
        full_key = f"{self._prefix}{key}"
        if full_key not in self._metadata:
            raise damaged(self._path, f"it lacks {full_key}")
        raise damaged(self._path, f"{full_key} cannot be {_shortened(self._metadata[full_key])}")

    def require_finite(self) -> None:
        """Raises HQError if a number is infinite or NaN."""
        for key, value in self._metadata.items():
            if key.startswith(self._prefix) and isinstance(value, float):
                self.require(isfinite(value), key.removeprefix(self._prefix))

    def number(self, key: str) -> float:
        """A required number."""
        value = self._metadata.get(self._prefix + key)
        self.require(isinstance(value, float), key)
        assert isinstance(value, float)
        return value

    def count(self, key: str) -> int:
        """A number that may be 0 or missing, which is the same."""
        value = self._metadata.get(self._prefix + key, 0)
        return self.size(key) if not isinstance(value, int) or value else 0

    def optional(self, key: str, default: int) -> int:
        """A size, or the default if the file does not have it."""
        return self.size(key) if self._prefix + key in self._metadata else default

    def size(self, key: str) -> int:
        """A positive integer; an array with one item per layer must have equal items."""
        value = self._metadata.get(self._prefix + key)
        if isinstance(value, np.ndarray):
            by_layer = value.tolist()
            self.require(len(by_layer) == self.n_layers > 0 and len(set(by_layer)) == 1, key)
            value = by_layer[0]
        self.require(type(value) is int and 0 < value < 1 << 32, key)
        assert isinstance(value, int)
        return value


def _shortened(value: object) -> str:
    """A value as text of one short line."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 40 else f"{text[:40]}…"
