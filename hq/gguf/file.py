"""A GGUF file, opened and checked: which model it is, the types of its tensors, and its norms."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from hq.errors import HQError
from hq.gguf.header import Header, Tensor, Value, damaged
from hq.gguf.layout import (
    ARCHITECTURES,
    PROJECTIONS,
    Sizes,
    gguf_architecture,
    require_tensors,
    sizes_of,
)
from hq.gguf.norms import cached, column_norms
from hq.gguf.parts import open_parts, tensors_of
from hq.gguf.types import GGMLType, dequantized
from hq.gguf.vocabulary import tokens_of
from hq.models.architectures import RECORDS
from hq.models.audit import AuditRow
from hq.models.norm_digest import norm_digest
from hq.neurons.neuron_set import GGUF_ORIGIN, ModelIdentity

_CHUNK = 1 << 22


class GGUFFile:
    """A GGUF model, read through a memory map; only what is asked for is read.

    A split model is named by its first part; the others are read from the same folder.

    Raises HQError for a file that is missing, damaged, cut off, of an architecture that hq does not
    know, or whose tensors are not what its hyperparameters say.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        parts = open_parts(path)
        self.paths = tuple(part.path for part in parts)
        held = tensors_of(parts)
        tensors = {name: tensor for name, (_, tensor) in held.items()}
        self._data = {name: part.data for name, (part, _) in held.items()}
        self._raw = parts[0].data
        self.header: Header = replace(parts[0].header, tensors=tensors)
        self.architecture = gguf_architecture(path, self.header)
        self.tokens = tokens_of(path, self.metadata)
        self._sizes: Sizes = sizes_of(path, self.header, self.architecture, len(self.tokens))
        require_tensors(path, self.header, self.architecture, self._sizes)
        self._stamp = " ".join(part.stamp for part in parts)

    @property
    def metadata(self) -> Mapping[str, Value]:
        """Every key: numbers, strings, tuples of strings, and arrays that lie in the file."""
        return self.header.metadata

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor by its name, in the file's order."""
        return self.header.tensors

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self._sizes.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._sizes.d_model

    @property
    def d_ff(self) -> int:
        """Width of the FFN's product: neurons of a layer."""
        return self._sizes.d_ff

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self._sizes.vocabulary

    @cached_property
    def identity(self) -> ModelIdentity:
        """Whose neurons it has.

        A file that hq wrote names the checkpoint it was made from. Any other is known by its own
        bytes, and by the norms that it shares with its checkpoint (`hq.models.norm_digest`).
        """
        return self._source() or self._own()

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE2b over every tensor's name, type, shape and bytes: 16 hex digits.

        It depends on this file alone, whatever source checkpoint its metadata name. Splitting does
        not change it.
        """
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.type.name} {list(tensor.shape)}\n".encode())
            stored = self.rows(name).reshape(-1)
            for start in range(0, tensor.nbytes, _CHUNK):
                digest.update(stored[start : start + _CHUNK].data)
        return digest.hexdigest()

    def rows(self, name: str) -> UInt8[np.ndarray, "row nbytes"]:
        """The stored bytes of a tensor, one row of whole blocks per row of it; read-only."""
        tensor = self.tensors[name]
        stored = np.frombuffer(self._data[name], np.uint8, tensor.nbytes, tensor.offset)
        row_bytes = tensor.shape[0] // tensor.type.weights * tensor.type.nbytes
        return stored.reshape(-1, row_bytes)

    @property
    def raw(self) -> memoryview:
        """All bytes of the file; read-only. Raises HQError for a split one."""
        self.require_whole()
        return memoryview(self._raw)

    def require_whole(self) -> None:
        """Raises HQError for a split model, where only one file can be used."""
        if len(self.paths) > 1:
            raise HQError(
                f"{self.path} is split into {len(self.paths)} parts, which cannot be used here: "
                "merge them with `llama-gguf-split --merge`."
            )

    def dense(self, name: str) -> Float[np.ndarray, "row weight"]:
        """A tensor dequantized, float32; a vector is one row."""
        return dequantized(self.rows(name), self.tensors[name].type)

    @cached_property
    def norms(self) -> Float[np.ndarray, "layer d_ff"]:
        """‖W_down[:, i]‖₂ of the file's own dequantized weights, float32.

        Cached as "<file name>.hq.safetensors" in the same folder. Raises HQError for weights that
        are NaN or infinite.
        """
        return cached(self.path, self._stamp, (self.n_layers, self.d_ff), self._norms)

    def audit(self, compute: Callable[[int, GGMLType], str]) -> list[AuditRow]:
        """The projections inside the layers, counted by how they are really stored.

        `compute` says what a product with weights of a type runs in, at a layer.
        """
        kinds: dict[tuple[str, str, float, str], list[int]] = defaultdict(list)
        for layer, kind, tensor in self._projections():
            module = kind if kind.startswith("ffn") else "attention"
            stored = tensor.type.name.lower(), tensor.bits_per_weight
            kinds[module, *stored, compute(layer, tensor.type)].append(math.prod(tensor.shape))
        return [
            AuditRow(module, len(sizes), storage, bits, runs_in, sum(sizes))
            for (module, storage, bits, runs_in), sizes in sorted(kinds.items())
        ]

    def weight_bytes(self) -> int:
        """Bytes of all tensors, scales included."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def _projections(self) -> Iterable[tuple[int, str, Tensor]]:
        for name, tensor in self.tensors.items():
            parts = name.split(".")  # blk, layer, kind, "weight" or "bias"
            if len(parts) == 4 and parts[2] in PROJECTIONS and parts[3] == "weight":
                yield int(parts[1]), parts[2], tensor

    def _norms(self) -> Float[np.ndarray, "layer d_ff"]:
        norms = np.empty((self.n_layers, self.d_ff), dtype=np.float32)
        for layer in range(self.n_layers):
            name = f"blk.{layer}.ffn_down.weight"
            norms[layer] = column_norms(self.rows(name), self.tensors[name].type)
            if not np.isfinite(norms[layer]).all():
                raise damaged(self.path, f"{name} holds weights that are not finite")
        return norms

    def _source(self) -> ModelIdentity | None:
        """The identity of the checkpoint that the file says it was made from."""
        keys = ("name", "fingerprint", "architecture", "kin")
        said = {key: self.metadata.get(f"hq.source.{key}") for key in keys}
        if said["fingerprint"] is None:
            return None
        name, fingerprint, architecture, of_kin = (said[key] for key in keys)
        of_kin = "" if of_kin is None else of_kin  # GGUF writers leave empty strings out
        if not (
            isinstance(name, str)
            and isinstance(fingerprint, str)
            and isinstance(architecture, str)
            and isinstance(of_kin, str)
        ):
            raise damaged(self.path, "its hq.source keys do not name a checkpoint")
        return ModelIdentity(
            name=name,
            fingerprint=fingerprint,
            architecture=architecture,
            n_layers=self.n_layers,
            d_ff=self.d_ff,
            norm_digest=of_kin,
        )

    def _own(self) -> ModelIdentity:
        model_type = ARCHITECTURES[self.architecture].model_type
        given = self.metadata.get("general.name")
        names = RECORDS[model_type].norms
        norms = [] if names is None else list(names.ordered(self.n_layers))
        return ModelIdentity(
            name=given if isinstance(given, str) and given else self.path.stem,
            fingerprint=GGUF_ORIGIN + self.fingerprint,
            architecture=model_type,
            n_layers=self.n_layers,
            d_ff=self.d_ff,
            norm_digest=norm_digest(self.dense(name).ravel() for name in norms) if norms else "",
        )
