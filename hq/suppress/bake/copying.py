"""Copies at the speed of the disk, with some of their bytes replaced."""

import hashlib
import os
from collections.abc import Iterable
from errno import EINVAL, ENOSYS, EOPNOTSUPP, EXDEV
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hq.errors import HQError
from hq.suppress.bake.strided_scales import Patch

_CHUNK = 1 << 22
_CANNOT = (EINVAL, ENOSYS, EOPNOTSUPP, EXDEV)  # file systems, or pairs of them, that do not


def copy_from(source: BinaryIO, start: int, out: BinaryIO) -> None:
    """Appends a file's bytes from `start` on, inside the kernel where it can do that."""
    out.flush()
    end = os.fstat(source.fileno()).st_size
    copy = getattr(os, "copy_file_range", None)
    try:
        while copy and start < end:
            moved = copy(source.fileno(), out.fileno(), end - start, start)
            if not moved:
                break
            start += moved
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    out.seek(0, os.SEEK_END)
    source.seek(start)
    while chunk := source.read(_CHUNK):
        out.write(chunk)


def sha256(path: Path) -> str:
    """The digest of a whole file, 64 hex digits: what `sha256sum` says."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def patch(path: Path, patches: Iterable[tuple[int, Patch]]) -> None:
    """Puts each patch into the tensor that starts at that byte, and the file on disk."""
    with open(path, "r+b") as file:
        written = np.memmap(file, np.uint8, "r+")
        for start, each in patches:
            each.strip.bytes_in(written[start:])[:] = each.content
        written.flush()
        os.fsync(file.fileno())


def copy_to_disk(source: Path, target: Path) -> None:
    """A copy of a whole file, synced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as original, open(target, "wb") as out:
        copy_from(original, 0, out)
        out.flush()
        os.fsync(out.fileno())


def changed(path: Path) -> HQError:
    """The error for what something else has edited since it was baked."""
    return HQError(
        f"{path} was changed after it was baked, so the original cannot be restored from it: use "
        "what `hq bake` wrote."
    )
