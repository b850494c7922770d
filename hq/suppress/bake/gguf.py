"""Baking into a GGUF file: block scales of rows are multiplied, and nothing is requantized.

The record is the last entry of the file's metadata, which every reader of GGUF accepts. It
lengthens the header, so all tensors move to the next aligned offset; only scaled bytes change. A
record in a second file would be lost when the file is copied, and readers of metadata would not
see bytes after the tensors.
"""

import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.header import TensorInfo, padded
from hq.gguf.types import GGMLType, dequantized
from hq.neurons.factors import Factors
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.registry import Registry
from hq.storage.atomic import atomic_file
from hq.storage.copying import copy_from
from hq.storage.verified_folder import sha256_of
from hq.suppress.bake.record import BakeRecord, changed_since_baked
from hq.suppress.bake.strided_scales import FORMATS, Patch, StridedScales, apply_patches
from hq.suppress.bake.target import NeuronWeights

KEY = "hq.bake.record"

_STRING = 8  # GGUF's number of the type
_ENTRY_COUNT = slice(16, 24)  # bytes that hold the number of metadata entries
_DIGEST_PLACEHOLDER = "0" * 64  # has the length of the digest, which is known later


@dataclass(frozen=True, slots=True)
class BlockScales:
    """The numbers of a block to which all its weights are proportional: format, byte offsets.

    A weight is a sum of such scales, each times a code or a smaller scale, so all of them times α
    is the weight times α.
    """

    format: str
    offsets: tuple[int, ...]


BLOCK_SCALES: Registry[BlockScales] = Registry("GGUF type that can be baked")
for _name in ("F32", "F16", "BF16"):
    BLOCK_SCALES.add(_name, BlockScales(_name, (0,)))  # the weight itself
BLOCK_SCALES.add("Q4_0", BlockScales("F16", (0,)))
BLOCK_SCALES.add("Q4_1", BlockScales("F16", (0, 2)))  # and the minimum of the block
BLOCK_SCALES.add("Q5_0", BlockScales("F16", (0,)))
BLOCK_SCALES.add("Q5_1", BlockScales("F16", (0, 2)))
BLOCK_SCALES.add("Q8_0", BlockScales("F16", (0,)))
BLOCK_SCALES.add("Q2_K", BlockScales("F16", (80, 82)))  # K-quants: scales of the sub-block scales
BLOCK_SCALES.add("Q3_K", BlockScales("F16", (108,)))
BLOCK_SCALES.add("Q4_K", BlockScales("F16", (0, 2)))
BLOCK_SCALES.add("Q5_K", BlockScales("F16", (0, 2)))
BLOCK_SCALES.add("Q6_K", BlockScales("F16", (208,)))
BLOCK_SCALES.add("IQ4_NL", BlockScales("F16", (0,)))


class GGUFModel:
    """One GGUF file. Raises HQError for a file that hq cannot read, and for a split one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GGUFFile(path)
        self.file.require_single_file()
        self.d_ff = self.file.d_ff
        self.space = self.file.space
        self.vocabulary = self.file.vocabulary

    @property
    def identity(self) -> ModelIdentity:
        """The identity of the file."""
        return self.file.identity

    @cached_property
    def record(self) -> BakeRecord | None:
        """The record in the metadata."""
        text = self.file.metadata.get(KEY)
        return None if text is None else BakeRecord.parse(str(text), str(self.path))

    def strided_scales(self, layer: int, index: int) -> list[StridedScales]:
        """Scales of the neuron's row of W_up, and its bias.

        Without a gate, h is not linear in that row (GELU): then of its column of W_down.
        """
        prefix = f"blk.{layer}."
        up = self.file.tensors[f"{prefix}ffn_up.weight"]
        gated = "ffn_gate" in self.file.layout.layer
        fused = up.shape[1] == 2 * self.d_ff  # the gate comes first
        if not gated and not fused:
            return [_column(self.path, self.file.tensors[f"{prefix}ffn_down.weight"], index)]
        row = self.d_ff + index if fused else index
        scales = _row(self.path, up, row)
        bias = self.file.tensors.get(f"{prefix}ffn_up.bias")
        return scales if bias is None else [*scales, _bias(bias, row)]

    def tensor_bytes(self, tensor: str) -> UInt8[np.ndarray, " byte"]:
        """The bytes of a tensor. Raises HQError if there is no such tensor."""
        if tensor not in self.file.tensors:
            raise HQError(f"{self.path} has no tensor {tensor!r}, which its record names.")
        return self.file.rows(tensor).reshape(-1)

    def parts(self) -> Mapping[str, UInt8[np.ndarray, " byte"]]:
        """The header without the record, and all bytes after it."""
        header = self.file.raw[: self.file.header.data_start]
        if self.record is not None:
            header = memoryview(self._original_header(self.record))
        tensors = self.file.raw[self.file.header.data_start :]
        return {
            "header": np.frombuffer(header, np.uint8),
            "tensors": np.frombuffer(tensors, np.uint8),
        }

    def location(self, tensor: str) -> tuple[str, int]:
        """The offset of a tensor after the header."""
        return "tensors", self.file.tensors[tensor].offset - self.file.header.data_start

    def neuron_weights(self, layer: int, index: int) -> NeuronWeights:
        """The blocks that the neuron's scales multiply, dequantized by the package gguf."""
        by_tensor: dict[str, list[StridedScales]] = {}
        for scales in self.strided_scales(layer, index):
            by_tensor.setdefault(scales.tensor, []).append(scales)
        return NeuronWeights.concatenated([self._weights(of) for of in by_tensor.values()])

    def logits(
        self, exchanges: Sequence[PromptResponse], scalings: Sequence[Factors]
    ) -> list[Float[np.ndarray, "token vocab"]]:
        """Logits as llama.cpp computes them on one thread."""
        from hq.backends.llamacpp.backend import LlamaBackend  # llama-cpp-python is an extra

        logits = []
        with LlamaBackend(self.path) as backend:
            for factors in scalings:
                with backend.scale(factors):
                    by_row = dict(backend.logits(exchanges))
                logits.append(np.concatenate([by_row[row] for row in range(len(exchanges))]))
        return logits

    def bake(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> BakeRecord:
        """Write the patched file; the original is hashed while it is copied."""
        header = self.file.header
        padding = bytes(self.file.raw[header.end : header.data_start]).hex()
        name = self.path.name

        def with_digest(digest: str) -> BakeRecord:
            return record.model_copy(update={"sha256": {name: digest}, "padding": padding})

        entry = _metadata_entry(with_digest(_DIGEST_PLACEHOLDER).model_dump_json())
        data_start = padded(header.end + len(entry), header.alignment)
        with atomic_file(target) as path, ThreadPoolExecutor(1) as executor:
            digest = executor.submit(sha256_of, self.path)
            with open(self.path, "rb") as original, open(path, "wb") as out:
                out.write(bytes(data_start))
                copy_from(original, header.data_start, out)
                complete = with_digest(digest.result())
                out.seek(0)
                out.write(self._extended_header(_metadata_entry(complete.model_dump_json())))
            apply_patches(path, self._with_offsets(patches, data_start - header.data_start))
        return complete

    def restore(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> None:
        """Write the original file. Raises HQError if its digest is not that of the record."""
        header = self._original_header(record)
        data_start = self.file.header.data_start
        with atomic_file(target) as path:
            with open(self.path, "rb") as baked, open(path, "wb") as out:
                out.write(header)
                copy_from(baked, data_start, out)
            apply_patches(path, self._with_offsets(patches, len(header) - data_start))
            if [sha256_of(path)] != list(record.sha256.values()):
                raise changed_since_baked(self.path)

    def _extended_header(self, entry: bytes) -> bytes:
        """The header with one more metadata entry."""
        header, raw = self.file.header, self.file.raw
        (count,) = struct.unpack("<Q", raw[_ENTRY_COUNT])
        return b"".join(
            [
                raw[: _ENTRY_COUNT.start],
                struct.pack("<Q", count + 1),
                raw[_ENTRY_COUNT.stop : header.tensors_start],
                entry,
                raw[header.tensors_start : header.end],
            ]
        )

    def _original_header(self, record: BakeRecord) -> bytes:
        """The header before baking, up to the first tensor.

        Raises HQError if the record is not the last metadata entry.
        """
        header, raw = self.file.header, self.file.raw
        entry = _metadata_entry(str(self.file.metadata[KEY]))
        start = header.tensors_start - len(entry)
        if raw[start : header.tensors_start] != entry:
            raise changed_since_baked(self.path)
        (count,) = struct.unpack("<Q", raw[_ENTRY_COUNT])
        return b"".join(
            [
                raw[: _ENTRY_COUNT.start],
                struct.pack("<Q", count - 1),
                raw[_ENTRY_COUNT.stop : start],
                raw[header.tensors_start : header.end],
                bytes.fromhex(record.padding),
            ]
        )

    def _weights(self, scales: Sequence[StridedScales]) -> NeuronWeights:
        """The weights of blocks at equal distances, which scales of one tensor multiply."""
        first, kind = scales[0], self.file.tensors[scales[0].tensor].type
        shape, strides = (first.count, kind.nbytes), (first.stride, 1)
        start = first.start - first.start % kind.nbytes
        stored = self.tensor_bytes(first.tensor)[start:]
        return _block_weights(np.lib.stride_tricks.as_strided(stored, shape, strides), kind)

    def _with_offsets(self, patches: Sequence[Patch], shift: int) -> list[tuple[int, Patch]]:
        """Patches with the start of their tensor in a file whose tensors lie `shift` further."""
        return [(self.file.tensors[p.scales.tensor].offset + shift, p) for p in patches]


def _metadata_entry(text: str) -> bytes:
    """The record as an entry of GGUF metadata."""
    key, value = KEY.encode(), text.encode()
    lengths = (struct.pack("<Q", len(part)) for part in (key, value))
    return next(lengths) + key + struct.pack("<I", _STRING) + next(lengths) + value


def _row(path: Path, tensor: TensorInfo, row: int) -> list[StridedScales]:
    """The scales of all blocks of a row."""
    kind = tensor.type
    if kind.name not in BLOCK_SCALES:
        raise HQError(
            f"{path} has {tensor.name} in {kind.name}, into which α cannot be baked: use a file in "
            f"one of {', '.join(BLOCK_SCALES)}."
        )
    scales, blocks = BLOCK_SCALES[kind.name], tensor.shape[0] // kind.weights
    start = row * blocks * kind.nbytes
    return [
        StridedScales(tensor.name, scales.format, start + offset, kind.nbytes, blocks)
        for offset in scales.offsets
    ]


def _bias(bias: TensorInfo, row: int) -> StridedScales:
    """One number of a bias, which always has a plain type."""
    size = bias.type.nbytes
    return StridedScales(bias.name, bias.type.name, row * size, size, 1)


def _column(path: Path, down: TensorInfo, index: int) -> StridedScales:
    """A column of W_down. Raises HQError if blocks of weights share scales with other columns."""
    if down.type.weights != 1:
        raise HQError(
            f"{path} has no gate, so a neuron is scaled by its column of {down.name}, but in "
            f"{down.type.name} {down.type.weights} columns share a block's scale: bake into a file "
            "in F32, F16 or BF16."
        )
    size = down.type.nbytes
    return StridedScales(
        down.name, down.type.name, index * size, down.shape[0] * size, down.shape[1]
    )


def _block_weights(blocks: UInt8[np.ndarray, "block nbytes"], kind: GGMLType) -> NeuronWeights:
    """Dequantized weights of blocks, and what each of their scales contributes."""
    scales = BLOCK_SCALES[kind.name]
    number_format = FORMATS[scales.format]
    magnitudes = ulps = np.zeros(len(blocks) * kind.weights)
    for offset in scales.offsets:
        numbers = number_format.read(blocks[:, offset : offset + number_format.nbytes])
        ulp = number_format.ulp(numbers)
        magnitudes = magnitudes + np.abs(_contribution(blocks, kind, offset, numbers))
        ulps = ulps + np.abs(_contribution(blocks, kind, offset, ulp))
    return NeuronWeights(_dense(blocks, kind), magnitudes, ulps)


def _contribution(
    blocks: UInt8[np.ndarray, "block nbytes"],
    kind: GGMLType,
    offset: int,
    numbers: Float[np.ndarray, " block"],
) -> Float[np.ndarray, " weight"]:
    """The weights with these numbers as the scale at `offset`, and zero for all other scales."""
    scales, edited = BLOCK_SCALES[kind.name], blocks.copy()
    number_format = FORMATS[scales.format]
    for other in scales.offsets:
        edited[:, other : other + number_format.nbytes] = 0
    edited[:, offset : offset + number_format.nbytes] = number_format.write(numbers)
    return _dense(edited, kind)


def _dense(
    blocks: UInt8[np.ndarray, "block nbytes"], kind: GGMLType
) -> Float[np.ndarray, " weight"]:
    row: Float[np.ndarray, "1 weight"] = dequantized(blocks.reshape(1, -1), kind)
    return row.ravel().astype(np.float64)
