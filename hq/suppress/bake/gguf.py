"""Baking into a GGUF file: the scales of a row's blocks are multiplied, nothing is quantized again.

The record travels inside the file, as the last of its metadata: one key more, which every reader
of GGUF shows and none minds. That makes the header longer, so the tensors' bytes move as a whole
to the next aligned place; they stay the same but for what was scaled. A record beside the file
would be lost when the file is copied, and bytes behind the tensors would be no metadata to anyone.
"""

import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.header import Tensor, padded
from hq.gguf.layout import ARCHITECTURES
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.neurons.space import NeuronSpace
from hq.storage.atomic import atomic_file
from hq.suppress.bake.copying import changed, copy_from, patch, sha256
from hq.suppress.bake.gguf_types import SCALES, block_weights
from hq.suppress.bake.model import Factors, NeuronWeights
from hq.suppress.bake.record import BakeRecord
from hq.suppress.bake.strided_scales import Patch, StridedScales

KEY = "hq.suppress.bake.record"

_STRING = 8  # GGUF's number of the type
_COUNT = slice(16, 24)  # where a file says how many metadata it has
_NO_DIGEST = "0" * 64  # holds the place until the digest is known


class GGUFModel:
    """One GGUF file. Raises HQError for one that hq cannot read, and for a split one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GGUFFile(path)
        self.file.require_whole()
        self.d_ff = self.file.d_ff
        self.space = NeuronSpace.rectangular(self.file.n_layers, self.d_ff)
        self.vocabulary = self.file.vocabulary

    @property
    def identity(self) -> ModelIdentity:
        """The file's own."""
        return self.file.identity

    @cached_property
    def record(self) -> BakeRecord | None:
        """The record among the metadata."""
        text = self.file.metadata.get(KEY)
        return None if text is None else BakeRecord.parse(str(text), str(self.path))

    def strips(self, layer: int, index: int) -> list[StridedScales]:
        """Scales of the neuron's row of W_up, and its bias.

        Without a gate GELU stands between that row and h: then of its column of W_down.
        """
        prefix = f"blk.{layer}."
        up = self.file.tensors[f"{prefix}ffn_up.weight"]
        gated = "ffn_gate" in ARCHITECTURES[self.file.architecture].layer
        fused = up.shape[1] == 2 * self.d_ff  # the gate comes first
        if not gated and not fused:
            return [_column(self.path, self.file.tensors[f"{prefix}ffn_down.weight"], index)]
        row = self.d_ff + index if fused else index
        bias = self.file.tensors.get(f"{prefix}ffn_up.bias")
        found = _row(self.path, up, row)
        return found if bias is None else [*found, _number(bias, row)]

    def stored(self, tensor: str) -> UInt8[np.ndarray, " byte"]:
        """A tensor's bytes. HQError where there is no such tensor."""
        if tensor not in self.file.tensors:
            raise HQError(f"{self.path} has no tensor {tensor!r}, which its record names.")
        return self.file.rows(tensor).reshape(-1)

    def parts(self) -> Mapping[str, UInt8[np.ndarray, " byte"]]:
        """The header, without the record, and all after it."""
        header = self.file.raw[: self.file.header.data_start]
        if self.record is not None:
            header = memoryview(self._header_before(self.record))
        tensors = self.file.raw[self.file.header.data_start :]
        return {
            "header": np.frombuffer(header, np.uint8),
            "tensors": np.frombuffer(tensors, np.uint8),
        }

    def place(self, tensor: str) -> tuple[str, int]:
        """Behind the header."""
        return "tensors", self.file.tensors[tensor].offset - self.file.header.data_start

    def weights(self, layer: int, index: int) -> NeuronWeights:
        """By the package gguf: the row's blocks as they are, and with one scale at a time."""
        return NeuronWeights.joined([self._weights(own) for own in self._by_tensor(layer, index)])

    def logits(
        self, exchanges: Sequence[PromptResponse], scalings: Sequence[Factors]
    ) -> list[Float[np.ndarray, "token vocab"]]:
        """As llama.cpp computes them, on one thread."""
        from hq.backends.llamacpp.backend import LlamaBackend  # llama-cpp-python is an extra

        found = []
        with LlamaBackend(self.path) as backend:
            for factors in scalings:
                with backend.scale(factors):
                    rows = dict(backend.logits(exchanges))
                found.append(np.concatenate([rows[row] for row in range(len(exchanges))]))
        return found

    def bake(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> BakeRecord:
        """Writes the patched file; the original is hashed while it is copied."""
        header = self.file.header
        padding = bytes(self.file.raw[header.end : header.data_start]).hex()
        name = self.path.name

        def finished(digest: str) -> BakeRecord:
            return record.model_copy(update={"sha256": {name: digest}, "padding": padding})

        end = header.end + len(_entry(finished(_NO_DIGEST).model_dump_json()))
        data_start = padded(end, header.alignment)
        with atomic_file(target) as path, ThreadPoolExecutor(1) as other:
            digest = other.submit(sha256, self.path)
            with open(self.path, "rb") as original, open(path, "wb") as out:
                out.write(bytes(data_start))
                copy_from(original, header.data_start, out)
                whole = finished(digest.result())
                out.seek(0)
                out.write(self._longer(_entry(whole.model_dump_json())))
            patch(path, self._placed(patches, data_start - header.data_start))
        return whole

    def restore(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> None:
        """Writes the file as it was. HQError where its digest is not the original's."""
        header = self._header_before(record)
        data_start = self.file.header.data_start
        with atomic_file(target) as path:
            with open(self.path, "rb") as baked, open(path, "wb") as out:
                out.write(header)
                copy_from(baked, data_start, out)
            patch(path, self._placed(patches, len(header) - data_start))
            if [sha256(path)] != list(record.sha256.values()):
                raise changed(self.path)

    def _longer(self, entry: bytes) -> bytes:
        """The header with one metadata entry more."""
        header, raw = self.file.header, self.file.raw
        (count,) = struct.unpack("<Q", raw[_COUNT])
        return b"".join(
            [
                raw[: _COUNT.start],
                struct.pack("<Q", count + 1),
                raw[_COUNT.stop : header.tensors_start],
                entry,
                raw[header.tensors_start : header.end],
            ]
        )

    def _header_before(self, record: BakeRecord) -> bytes:
        """The header as it was, to the first tensor. HQError where the record is not last in it."""
        header, raw = self.file.header, self.file.raw
        entry = _entry(str(self.file.metadata[KEY]))
        start = header.tensors_start - len(entry)
        if raw[start : header.tensors_start] != entry:
            raise changed(self.path)
        (count,) = struct.unpack("<Q", raw[_COUNT])
        return b"".join(
            [
                raw[: _COUNT.start],
                struct.pack("<Q", count - 1),
                raw[_COUNT.stop : start],
                raw[header.tensors_start : header.end],
                bytes.fromhex(record.padding),
            ]
        )

    def _by_tensor(self, layer: int, index: int) -> list[list[StridedScales]]:
        """The neuron's strips, those of one tensor together."""
        found: dict[str, list[StridedScales]] = {}
        for strip in self.strips(layer, index):
            found.setdefault(strip.tensor, []).append(strip)
        return list(found.values())

    def _weights(self, strips: Sequence[StridedScales]) -> NeuronWeights:
        """Of one tensor's strips, whose blocks stand at equal distances."""
        first, kind = strips[0], self.file.tensors[strips[0].tensor].type
        shape, strides = (first.count, kind.nbytes), (first.step, 1)
        start = first.start - first.start % kind.nbytes
        stored = self.stored(first.tensor)[start:]
        return block_weights(np.lib.stride_tricks.as_strided(stored, shape, strides), kind)

    def _placed(self, patches: Sequence[Patch], moved: int) -> list[tuple[int, Patch]]:
        """Patches with the start of their tensor in a file whose tensors lie `moved` further."""
        return [(self.file.tensors[p.strip.tensor].offset + moved, p) for p in patches]


def _entry(text: str) -> bytes:
    """The record as an entry of GGUF's metadata."""
    key, value = KEY.encode(), text.encode()
    lengths = (struct.pack("<Q", len(part)) for part in (key, value))
    return next(lengths) + key + struct.pack("<I", _STRING) + next(lengths) + value


def _row(path: Path, tensor: Tensor, row: int) -> list[StridedScales]:
    """Every scale of a row's blocks."""
    kind = tensor.type
    if kind.name not in SCALES:
        raise HQError(
            f"{path} has {tensor.name} in {kind.name}, into which α cannot be baked: use a file in "
            f"one of {', '.join(SCALES)}."
        )
    scales, blocks = SCALES[kind.name], tensor.shape[0] // kind.weights
    start = row * blocks * kind.nbytes
    return [
        StridedScales(tensor.name, scales.format, start + offset, kind.nbytes, blocks)
        for offset in scales.offsets
    ]


def _number(bias: Tensor, row: int) -> StridedScales:
    """One number of a vector, whose type is always a plain one."""
    size = bias.type.nbytes
    return StridedScales(bias.name, bias.type.name, row * size, size, 1)


def _column(path: Path, down: Tensor, index: int) -> StridedScales:
    """A column of W_down, which is apart from others only where weights are plain numbers."""
    if down.type.weights != 1:
        raise HQError(
            f"{path} has no gate, so a neuron is scaled by its column of {down.name}; in "
            f"{down.type.name} {down.type.weights} columns share a block's scale: bake into a file "
            "in F32, F16 or BF16."
        )
    size = down.type.nbytes
    return StridedScales(
        down.name, down.type.name, index * size, down.shape[0] * size, down.shape[1]
    )
