"""A GGUF file, opened and checked: its identity, tensors, norms and FFN weights."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from hq.errors import HQError
from hq.gguf.header import Header, MetadataValue, TensorInfo, damaged
from hq.gguf.layout import (
    EXPERT_PROJECTIONS,
    PROJECTIONS,
    ExpertCounts,
    Sizes,
    gguf_architecture,
    layout_of,
    require_tensors,
    sizes_of,
)
from hq.gguf.norms import cached_norms, dequantized_column_norms
from hq.gguf.parts import locate_tensors, open_parts
from hq.gguf.types import GGMLType, dequantized
from hq.gguf.vocabulary import tokens_of
from hq.models.architectures import RECORDS
from hq.models.architectures.record import Layout
from hq.models.audit import AuditRow
from hq.models.ffn_weights import FFN, FFNs
from hq.models.norm_digest import norm_digest
from hq.neurons.neuron_set import GGUF_ORIGIN, ModelIdentity
from hq.neurons.space import NeuronBlock, NeuronSpace
from hq.storage.fingerprints import cached_fingerprint

_CHUNK = 1 << 22  # bytes that are hashed at a time


class GGUFFile:
    """A GGUF model, read through a memory map: only what is used is read.

    A split model is named by its first part; the others must be in the same folder.

    Raises HQError if the file is missing, damaged or cut off, if hq does not know its
    architecture, or if its tensors do not match its hyperparameters.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        parts = open_parts(path)
        self.paths = tuple(part.path for part in parts)
        located = locate_tensors(parts)
        tensors = {name: tensor for name, (_, tensor) in located.items()}
        self._data = {name: part.data for name, (part, _) in located.items()}
        self._raw = parts[0].data
        self.header: Header = replace(parts[0].header, tensors=tensors)
        self.architecture = gguf_architecture(path, self.header)
        self.tokens = tokens_of(path, self.metadata)
        self._sizes: Sizes = sizes_of(path, self.header, self.architecture, len(self.tokens))
        require_tensors(path, self.header, self.architecture, self._sizes)
        self._stamp = " ".join(part.stamp for part in parts)

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """All metadata; arrays of numbers are views of the file, arrays of strings are tuples."""
        return self.header.metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the file's order."""
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
        """Number of neurons of a layer, or of each routed expert of a mixture."""
        return self._sizes.d_ff

    @property
    def experts(self) -> ExpertCounts | None:
        """The experts of each layer; None if layers are dense."""
        return self._sizes.experts

    @property
    def layout(self) -> Layout:
        """The layout of the file's architecture."""
        return layout_of(self.header, self.architecture)

    @cached_property
    def space(self) -> NeuronSpace:
        """Where the model's neurons lie."""
        return self._sizes.space

    @property
    def width(self) -> int:
        """Number of neurons of a layer, all experts together."""
        return len(self.space) // self.n_layers

    @property
    def head_widths(self) -> tuple[int, int]:
        """Widths of one attention head: of its keys, and of its values."""
        return self._sizes.widths["key"], self._sizes.widths["value"]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self._sizes.vocabulary

    @cached_property
    def identity(self) -> ModelIdentity:
        """The model that the file holds.

        A file written by hq names its source checkpoint. Any other is identified by its own bytes,
        and matched with a checkpoint by its norms (`hq.models.norm_digest`).
        """
        return self._source_identity() or self._own_identity()

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE2b over every tensor's name, type, shape and bytes: 16 hex digits.

        It depends on the tensors only, so metadata and splitting do not change it. It is computed
        once for files that do not change.
        """
        return cached_fingerprint("gguf 1", self.paths, self._fingerprint)

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.type.name} {list(tensor.shape)}\n".encode())
            stored = self.rows(name).reshape(-1)
            for start in range(0, tensor.nbytes, _CHUNK):
                digest.update(stored[start : start + _CHUNK].data)
        return digest.hexdigest()

    def rows(self, name: str) -> UInt8[np.ndarray, "row nbytes"]:
        """The stored blocks of a tensor, row by row; read-only."""
        tensor = self.tensors[name]
        stored = np.frombuffer(self._data[name], np.uint8, tensor.nbytes, tensor.offset)
        row_bytes = tensor.shape[0] // tensor.type.weights * tensor.type.nbytes
        return stored.reshape(-1, row_bytes)

    @property
    def raw(self) -> memoryview:
        """All bytes of the file; read-only. Raises HQError if the model is split."""
        self.require_single_file()
        return memoryview(self._raw)

    def require_single_file(self) -> None:
        """Raises HQError if the model is split into several files."""
        if len(self.paths) > 1:
            raise HQError(
                f"{self.path} is split into {len(self.paths)} parts, but a single file is needed "
                "here: merge them with `llama-gguf-split --merge`."
            )

    def dense(self, name: str) -> Float[np.ndarray, "row weight"]:
        """A tensor, dequantized to float32; a vector has one row."""
        return dequantized(self.rows(name), self.tensors[name].type)

    @cached_property
    def norms(self) -> Float[np.ndarray, "layer width"]:
        """‖W_down[:, i]‖₂ of the file's own dequantized weights, float32; expert after expert.

        Cached as "<file name>.hq.safetensors" in the same folder. Raises HQError if weights are
        NaN or infinite.
        """
        return cached_norms(self.path, self._stamp, (self.n_layers, self.width), self._norms)

    def ffns(self) -> FFNs:
        """The dequantized weights of each block's FFN, multiplied by the norm before it.

        llama.cpp's norms include the offset that some families add to their weights.
        """
        return FFNs(len(self.space.blocks), self._ffn)

    def audit(self, compute: Callable[[int, GGMLType], str]) -> list[AuditRow]:
        """The projections inside the layers, counted by the type that they are stored in.

        `compute` returns what a matrix product runs in, for a layer and the type of its weights.
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

    def _projections(self) -> Iterable[tuple[int, str, TensorInfo]]:
        """Layer, name and tensor of each projection."""
        for name, tensor in self.tensors.items():
            parts = name.split(".")  # blk, layer, projection, "weight" or "bias"
            if (
                len(parts) == 4
                and parts[2] in PROJECTIONS | EXPERT_PROJECTIONS
                and parts[3] == "weight"
            ):
                yield int(parts[1]), parts[2], tensor

    def _ffn(self, number: int) -> FFN:
        block = self.space.blocks[number]
        names = {
            n: f"blk.{block.layer}.{n}{self._suffix(block)}.weight"
            for n in ("ffn_gate", "ffn_up", "ffn_down")
        }
        stored = {n: self.tensors[name] for n, name in names.items() if name in self.tensors}
        bits = min(tensor.bits_per_weight for tensor in stored.values())
        dense = {n: torch.from_numpy(self._matrix(t.name, block)) for n, t in stored.items()}
        norm_name = f"blk.{block.layer}.ffn_norm.weight"
        norm = torch.from_numpy(np.array(self.dense(norm_name))).ravel()
        gate, up, down = dense.get("ffn_gate"), dense["ffn_up"], dense["ffn_down"]
        if gate is None and len(up) == 2 * down.shape[1]:  # one matrix for both
            gate, up = up.chunk(2)
        return FFN(None if gate is None else gate * norm, up * norm, down, bits)

    def _suffix(self, block: NeuronBlock) -> str:
        """What the names of a block's tensors have after ffn_gate, ffn_up and ffn_down."""
        if self.experts is None or block.expert is None:
            return ""
        return "_exps" if block.expert < self.experts.count else "_shexp"

    def _rows_of(self, name: str, block: NeuronBlock) -> UInt8[np.ndarray, "row nbytes"]:
        """The stored rows of a block's matrix; those of routed experts follow one another."""
        rows = self.rows(name)
        if block.expert is None or not name.endswith("_exps.weight"):
            return rows
        count = self.tensors[name].shape[1]
        return rows[block.expert * count : (block.expert + 1) * count]

    def _matrix(self, name: str, block: NeuronBlock) -> Float[np.ndarray, "row weight"]:
        return np.array(dequantized(self._rows_of(name, block), self.tensors[name].type))

    def _norms(self) -> Float[np.ndarray, "layer width"]:
        norms = np.empty(len(self.space), dtype=np.float32)
        for block, own in zip(self.space.blocks, self.space.slices, strict=True):
            name = f"blk.{block.layer}.ffn_down{self._suffix(block)}.weight"
            rows = self._rows_of(name, block)
            norms[own] = dequantized_column_norms(rows, self.tensors[name].type)
            if not np.isfinite(norms[own]).all():
                raise damaged(self.path, f"{name} has weights that are not finite")
        return norms.reshape(self.n_layers, self.width)

    def _source_identity(self) -> ModelIdentity | None:
        """The identity of the source checkpoint, if the metadata name one."""
        name, fingerprint, architecture, digest = (
            self.metadata.get(f"hq.source.{key}")
            for key in ("name", "fingerprint", "architecture", "kin")
        )
        if fingerprint is None:
            return None
        digest = "" if digest is None else digest  # GGUF writers omit empty strings
        if not (
            isinstance(name, str)
            and isinstance(fingerprint, str)
            and isinstance(architecture, str)
            and isinstance(digest, str)
        ):
            raise damaged(self.path, "its hq.source keys do not name a checkpoint")
        return ModelIdentity.of(
            name=name,
            fingerprint=fingerprint,
            architecture=architecture,
            space=self.space,
            norm_digest=digest,
        )

    def _own_identity(self) -> ModelIdentity:
        """The identity of a file that names no source checkpoint."""
        model_type = self.layout.model_type
        name = self.metadata.get("general.name")
        names = RECORDS[model_type].norms
        norms = [] if names is None else list(names.ordered(self.n_layers))
        return ModelIdentity.of(
            name=name if isinstance(name, str) and name else self.path.stem,
            fingerprint=GGUF_ORIGIN + self.fingerprint,
            architecture=model_type,
            space=self.space,
            norm_digest=norm_digest(self.dense(name).ravel() for name in norms) if norms else "",
        )
