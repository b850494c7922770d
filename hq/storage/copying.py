"""Copies of large files at the speed of the disk."""

import os
from errno import EINVAL, ENOSYS, EOPNOTSUPP, EXDEV
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 22
_UNSUPPORTED = (EINVAL, ENOSYS, EOPNOTSUPP, EXDEV)  # the file systems cannot copy in the kernel


def copy_from(source: BinaryIO, start: int, out: BinaryIO) -> None:
    """Append the bytes of `source` from `start` to its end, in the kernel if it supports that."""
    out.flush()
    end = os.fstat(source.fileno()).st_size
    copy_file_range = getattr(os, "copy_file_range", None)
    try:
        while copy_file_range and start < end:
            copied = copy_file_range(source.fileno(), out.fileno(), end - start, start)
            if not copied:
                break
            start += copied
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    out.seek(0, os.SEEK_END)
    source.seek(start)
    while chunk := source.read(_CHUNK):
        out.write(chunk)


def copy_to_disk(source: Path, target: Path) -> None:
    """Copy a file and sync the copy; create its folder if it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as original, open(target, "wb") as out:
        copy_from(original, 0, out)
        out.flush()
        os.fsync(out.fileno())
