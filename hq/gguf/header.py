"""Read and check the header of a GGUF file: its metadata and where each tensor is stored.

`gguf.GGUFReader` takes 2 s for a vocabulary of 49,152 tokens and trusts every length. This reader
never allocates more bytes than the file has, whatever the header says.
"""

import hashlib
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hq.errors import HQError
from hq.gguf.types import TYPES, GGMLType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # default of `general.alignment`

_MAX_ITEMS = 1 << 22  # of an array; vocabularies and merges have fewer than a million
_MAX_METADATA = 1 << 16
_MAX_NAME = 63  # bytes of a tensor's name, as in llama.cpp
_STRING, _ARRAY = 8, 9
_SCALARS = {  # GGUF's number of a type: the character of struct and NumPy for it
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip

MetadataValue = bool | int | float | str | tuple[str, ...] | np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Type, shape and location of one tensor. `shape` is in GGUF's order: the row length first."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales included."""
        return 8 * self.nbytes / prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the data of the tensors."""

    version: int
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    tensors_start: int  # byte where the metadata end and the list of tensors begins
    end: int  # byte where the list of tensors ends
    data_start: int
    digest: str  # 16 hex digits over all bytes before `end`


def read_header(path: Path, data: mmap.mmap) -> Header:
    """Read the header of the file `path`, mapped as `data`.

    Raises HQError unless the file is a complete, little-endian GGUF file of version 2 or 3: with
    possible lengths, counts, types, offsets and alignment, with unique names, and with tensors
    that follow one another inside the file.
    """
    cursor = _Cursor(path, data)
    version = _version(cursor)
    n_tensors, n_metadata = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = _metadata(cursor, n_metadata)
    tensors_start = cursor.at
    entries = _entries(cursor, n_tensors)
    alignment = _alignment(path, metadata)
    data_start = padded(cursor.at, alignment)
    return Header(
        version=version,
        metadata=metadata,
        tensors=_tensor_infos(path, entries, data_start, alignment, len(data)),
        alignment=alignment,
        tensors_start=tensors_start,
        end=cursor.at,
        data_start=data_start,
        digest=hashlib.blake2b(data[: cursor.at], digest_size=8).hexdigest(),
    )


class _Cursor:
    """A position in the mapped file that moves forward only, and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, length: int) -> int:
        """Skip `length` bytes; return where they start."""
        start = self.at
        if length > len(self.data) - start:
            raise cut_off(self.path)
        self.at = start + length
        return start

    def scalar(self, letter: str) -> Any:
        """Read a number of the type that struct calls `letter`."""
        layout = f"<{letter}"
        return struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        """Read a string, which must be UTF-8."""
        return self.strings(1)[0]

    def strings(self, count: int) -> tuple[str, ...]:
        """Read `count` strings, in a loop that takes 15 ms for a vocabulary."""
        data, at, strings = self.data, self.at, []
        length_at = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                (length,) = length_at(data, at)
                end = at + 8 + length
                if end > len(data):
                    raise cut_off(self.path)
                strings.append(data[at + 8 : end].decode())
                at = end
        except struct.error:
            raise cut_off(self.path) from None
        except UnicodeDecodeError:
            raise damaged(self.path, f"the string at byte {at} is not UTF-8") from None
        self.at = at
        return tuple(strings)

    def array(self) -> tuple[str, ...] | np.ndarray[Any, Any]:
        """Read an array: strings are decoded, numbers are a view of the file."""
        start = self.at
        kind, count = self.scalar("I"), self.scalar("Q")
        if count > _MAX_ITEMS:
            raise damaged(self.path, f"the array at byte {start} has {count} items")
        if kind == _STRING:
            return self.strings(count)
        if kind not in _SCALARS:
            raise damaged(self.path, f"the array at byte {start} has the unknown type {kind}")
        dtype = np.dtype(f"<{_SCALARS[kind]}")
        offset = self.take(count * dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, offset)


def cut_off(path: Path) -> HQError:
    """Return the error for a file that ends too early."""
    return HQError(f"{path} is cut off: copy it again.")


def damaged(path: Path, what: str) -> HQError:
    """Return the error for a file whose content is impossible; `what` says why."""
    return HQError(f"{path} is damaged ({what}): copy it again.")


def _version(cursor: _Cursor) -> int:
    path = cursor.path
    magic = cursor.data[:4]
    if magic != MAGIC[: len(magic)]:
        raise HQError(f"{path} is not a GGUF file: name a file that llama.cpp or hq wrote.")
    cursor.take(4)
    version = int(cursor.scalar("I"))
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0:
        raise HQError(f"{path} is big-endian: convert it again for a little-endian machine.")
    raise HQError(
        f"{path} is GGUF version {version}, but hq reads {VERSIONS[0]} and {VERSIONS[1]}: convert "
        "it again with a current llama.cpp."
    )


def _metadata(cursor: _Cursor, count: int) -> dict[str, MetadataValue]:
    path = cursor.path
    if count > _MAX_METADATA:
        raise damaged(path, f"it declares {count} metadata keys")
    metadata: dict[str, MetadataValue] = {}
    for _ in range(count):
        key, kind = cursor.string(), cursor.scalar("I")
        if not key or key in metadata:
            raise damaged(
                path, f"the metadata key {key!r} is " + ("duplicated" if key else "empty")
            )
        metadata[key] = _value(cursor, key, kind)
    return metadata


def _value(cursor: _Cursor, key: str, kind: int) -> MetadataValue:
    if kind == _STRING:
        return cursor.string()
    if kind == _ARRAY:
        return cursor.array()
    if kind not in _SCALARS:
        raise damaged(cursor.path, f"{key!r} has the unknown type {kind}")
    value: bool | int | float = cursor.scalar(_SCALARS[kind])
    return value


_Entry = tuple[str, GGMLType, tuple[int, ...], int]
"""A tensor in the header's list: name, type, shape, and offset into the data."""


def _entries(cursor: _Cursor, count: int) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for _ in range(count):  # with an impossible count, the cursor reaches the end of the file
        entry = _entry(cursor)
        if entry[0] in entries:
            raise damaged(cursor.path, f"the tensor {entry[0]} is duplicated")
        entries[entry[0]] = entry
    return list(entries.values())


def _entry(cursor: _Cursor) -> _Entry:
    path, start = cursor.path, cursor.at
    name, n_dims = cursor.string(), cursor.scalar("I")
    if not 0 < len(name.encode()) <= _MAX_NAME:
        raise damaged(path, f"the tensor at byte {start} has a name of {len(name)} characters")
    if not 1 <= n_dims <= 4:
        raise damaged(path, f"the tensor {name!r} has {n_dims} dimensions")
    shape = tuple(int(cursor.scalar("Q")) for _ in range(n_dims))
    if min(shape) < 1 or prod(shape) >= 1 << 63:
        raise damaged(path, f"the tensor {name!r} has the shape {shape}")
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    if kind not in TYPES:
        raise damaged(path, f"the tensor {name!r} has the unknown type {kind}")
    return name, TYPES[kind], shape, offset


def _alignment(path: Path, metadata: Mapping[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise damaged(path, f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _tensor_infos(
    path: Path, entries: list[_Entry], data_start: int, alignment: int, size: int
) -> dict[str, TensorInfo]:
    """The tensors by name; each must start where the one before it ends, as in llama.cpp.

    So no offset can point into another tensor.
    """
    tensors, expected = {}, 0
    for name, kind, shape, offset in entries:
        if shape[0] % kind.weights:
            raise damaged(path, f"a row of {name!r} is not a multiple of a block of {kind.name}")
        if offset != expected:
            raise damaged(path, f"{name!r} starts at {offset}, not at {expected}")
        nbytes = prod(shape) // kind.weights * kind.nbytes
        if data_start + offset + nbytes > size:
            raise cut_off(path)
        tensors[name] = TensorInfo(name, kind, shape, data_start + offset, nbytes)
        expected = padded(offset + nbytes, alignment)
    return tensors


def padded(at: int, alignment: int) -> int:
    """The first aligned byte at or after `at`."""
    return -(-at // alignment) * alignment
