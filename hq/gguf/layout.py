"""What a GGUF file of each architecture must hold: its hyperparameters, and a tensor of each shape.

The layouts come from the architecture records. Tensors beyond these are rejected, as llama.cpp
rejects them: a misspelt optional tensor would silently give another model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from hq.errors import HQError
from hq.gguf.header import Header, Tensor, damaged
from hq.models.architectures import GGUF_LAYOUTS
from hq.models.architectures.llama_cpp import ATTENTION, FUSED, GATED, NORMS, SEPARATE
from hq.models.architectures.record import Layout

_OPTIONAL = {"output": "d_model vocabulary"} | dict.fromkeys(
    ("rope_freqs", "rope_factors_long", "rope_factors_short"), "rope"
)
PROJECTIONS = frozenset({*SEPARATE, *FUSED, *ATTENTION, *GATED} - NORMS.keys())
ARCHITECTURES = GGUF_LAYOUTS


@dataclass(frozen=True, slots=True)
class Sizes:
    """The hyperparameters that give tensors their shapes; `widths` are those of single axes."""

    n_layers: int
    d_model: int
    d_ff: int
    vocabulary: int
    widths: Mapping[str, int]


def gguf_architecture(path: Path, header: Header) -> str:
    """The file's architecture, by llama.cpp's name; HQError when hq does not know it."""
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise HQError(f"{path} is of type {kind!r}, not a model: name the model's own file.")
    if not header.tensors:
        raise HQError(f"{path} holds no tensors: name a model's file, not a vocabulary's.")
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise damaged(path, "it lacks general.architecture")
    if name not in ARCHITECTURES:
        raise HQError(
            f"{path} is of the architecture {name!r}, which hq does not know: use one of "
            f"{', '.join(sorted(ARCHITECTURES))}, or the checkpoint that it was made from."
        )
    return name


def sizes_of(path: Path, header: Header, name: str, vocabulary: int) -> Sizes:
    """The hyperparameters of the architecture `name`, checked against each other.

    Raises HQError for one that is missing, absurd, or at odds with another.
    """
    given = _Hyperparameters(path, header, name)
    if given.optional("expert_count", 0):
        raise HQError(f"{path} is a mixture of experts, which hq cannot read: use a dense model.")
    given.require_finite()
    given.require(given.optional("vocab_size", vocabulary) == vocabulary, "vocab_size")
    epsilon = f"attention.{ARCHITECTURES[name].epsilon}"
    given.require(0 < given.number(epsilon) < 1, epsilon)
    d_model, d_ff = given.size("embedding_length"), given.size("feed_forward_length")
    heads = given.size("attention.head_count")
    kv = given.optional("attention.head_count_kv", heads)
    given.require(heads % kv == 0, "attention.head_count_kv")
    head = d_model // heads if d_model % heads == 0 else 0  # no width, unless it is given
    key = given.optional("attention.key_length", head)
    value = given.optional("attention.value_length", head)
    given.require(key > 0 and value > 0, "attention.head_count")
    rotated = given.optional("rope.dimension_count", key)
    given.require(rotated <= key and rotated % 2 == 0, "rope.dimension_count")
    q, k, v = heads * key, kv * key, kv * value
    widths = {"d_model": d_model, "d_ff": d_ff, "2d_ff": 2 * d_ff, "vocabulary": vocabulary}
    widths |= {"q": q, "k": k, "v": v, "qkv": q + k + v, "o": heads * value, "key": key}
    widths |= {"rope": rotated // 2, "context": given.size("context_length")}
    return Sizes(given.n_layers, d_model, d_ff, vocabulary, widths)


def require_tensors(path: Path, header: Header, name: str, sizes: Sizes) -> None:
    """Every tensor of the architecture is there, in its shape, and no other.

    Raises HQError that names the first which is not.
    """
    known: set[str] = set()
    for tensor, shape, required in _expected(header, ARCHITECTURES[name], sizes.n_layers):
        found = header.tensors.get(tensor)
        if found is not None:
            _require_form(path, found, tuple(sizes.widths[axis] for axis in shape.split()))
            known.add(tensor)
        elif required:
            raise damaged(path, f"it lacks the tensor {tensor}")
    surplus = header.tensors.keys() - known
    if surplus:
        raise HQError(
            f"{path} has a tensor {min(surplus)!r}, which {name} does not: copy it again, or "
            "convert it anew."
        )


def _expected(header: Header, layout: Layout, n_layers: int) -> Iterator[tuple[str, str, bool]]:
    """Name, shape and need of every tensor that may be there, one after the other."""
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


def _require_form(path: Path, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise HQError(
            f"{path} has {tensor.name} in the shape {tensor.shape}, but its hyperparameters say "
            f"{shape}: convert it again."
        )
    plain = tensor.type.name in ("F32", "F16", "BF16")
    if not (plain if len(shape) == 1 else tensor.type.holds_weights):
        raise damaged(path, f"{tensor.name} is of type {tensor.type.name}")


class _Hyperparameters:
    """The metadata of one architecture, by the names after its own."""

    def __init__(self, path: Path, header: Header, name: str) -> None:
        self._path, self._prefix, self._metadata = path, f"{name}.", header.metadata
        self.n_layers = 0  # until it is known, nothing is given layer by layer
        self.n_layers = self.size("block_count")
        self.require(self.n_layers <= len(header.tensors), "block_count")

    def require(self, holds: bool, key: str) -> None:
        """HQError that names `key` unless it holds."""
        if holds:
            return
        whole = f"{self._prefix}{key}"
        if whole not in self._metadata:
            raise damaged(self._path, f"it lacks {whole}")
        raise damaged(self._path, f"{whole} cannot be {_short(self._metadata[whole])}")

    def require_finite(self) -> None:
        """No number of the architecture is infinite or NaN."""
        for key, value in self._metadata.items():
            if key.startswith(self._prefix) and isinstance(value, float):
                self.require(isfinite(value), key.removeprefix(self._prefix))

    def number(self, key: str) -> float:
        """A number that must be there."""
        value = self._metadata.get(self._prefix + key)
        self.require(isinstance(value, float), key)
        assert isinstance(value, float)
        return value

    def optional(self, key: str, default: int) -> int:
        """A size, or the default where the file leaves it out."""
        return self.size(key) if self._prefix + key in self._metadata else default

    def size(self, key: str) -> int:
        """A positive whole number; given layer by layer, it must be the same for all."""
        value = self._metadata.get(self._prefix + key)
        if isinstance(value, np.ndarray):
            each = value.tolist()
            self.require(len(each) == self.n_layers > 0 and len(set(each)) == 1, key)
            value = each[0]
        self.require(type(value) is int and 0 < value < 1 << 32, key)
        assert isinstance(value, int)
        return value


def _short(value: object) -> str:
    """A value as a sentence can hold it."""
    said = repr(value).replace("\n", " ")
    return said if len(said) <= 40 else f"{said[:40]}…"
