"""Fingerprints of large files, computed once: hashing a checkpoint takes longer than opening it.

An entry of the cache holds the path, size, times and inode of every file. If any of them differs,
or the entry cannot be read, the fingerprint is computed again.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hq.storage.atomic import write_whole
from hq.storage.places import cache_folder

_SETTLED_NS = 2_000_000_000  # a file system may give two writes within this time one time stamp


class _Stamp(BaseModel):
    """What the file system says of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int  # changes with the content even where a tool restores mtime
    device: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> "_Stamp":
        file = file.resolve()
        stat = file.stat()
        return cls(
            path=str(file),
            size=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            ctime_ns=stat.st_ctime_ns,
            device=stat.st_dev,
            inode=stat.st_ino,
        )


class _Entry(BaseModel):
    """One file of the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    files: tuple[_Stamp, ...]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


def cached_fingerprint(kind: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """Return `compute()`, or what it returned earlier for the same, unchanged files.

    Args:
        kind: Names what is computed; raise its number if that changes.
        files: All files that are read.
        compute: Returns 16 hex digits.
    """
    stamps = tuple(map(_Stamp.of, files))
    paths = "\n".join((kind, *(stamp.path for stamp in stamps)))
    name = hashlib.blake2b(paths.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    entry_file = cache_folder() / "fingerprints" / f"{name}.json"
    known = _read(entry_file)
    if known is not None and (known.kind, known.files) == (kind, stamps):
        return known.fingerprint
    fingerprint = compute()
    newest = max((max(stamp.mtime_ns, stamp.ctime_ns) for stamp in stamps), default=0)
    settled = time.time_ns() - newest > _SETTLED_NS
    if settled and stamps == tuple(map(_Stamp.of, files)):  # not written meanwhile
        entry = _Entry(kind=kind, files=stamps, fingerprint=fingerprint)
        _write(entry_file, entry)
    return fingerprint


def _read(file: Path) -> _Entry | None:
    try:
        return _Entry.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(file: Path, entry: _Entry) -> None:
    """Write an entry; where the cache cannot be written, the next opening computes it again."""
    try:
        write_whole(file, entry.model_dump_json() + "\n")
    except OSError:
        return
