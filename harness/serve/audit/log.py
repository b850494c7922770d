"""Writing the audit log: one chained line per response, on the disk before the answer ends.

A file that reaches its size limit is renamed to LOG.000001 and so on, and the chain continues in a
new one. An incomplete last line, as a killed process leaves it, is moved to a file beside the log,
and a recovery line is appended.
"""

import hashlib
import os
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.serve.audit.files import log_files, next_full_file
from harness.serve.audit.hash_chain import ChainError, Link, decode_line, encode_line
from hq.errors import HQError
from hq.storage.atomic import sync_folder

ROTATE_BYTES = 64 << 20


class AuditLog:
    """A log that one process appends to. A context manager; `close` releases the lock.

    Raises HQError if another process writes the log, it cannot be written, or its last line is
    damaged.
    """

    def __init__(self, path: Path, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.path = path
        self._rotate_bytes = rotate_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise HQError(
                f"Another server writes the audit log {path}: name another file with --audit."
            ) from error
        self._descriptor = -1
        try:
            incomplete = _move_incomplete_line(path)
            self._link = _chain_end(path)
            self._open()
            if incomplete is not None:
                self.append({"kind": "recovery", **incomplete})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "AuditLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release the lock; a second call has no effect."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._lock.release()

    def append(self, content: Mapping[str, Any]) -> None:
        """Append a line, and return once it is on the disk.

        Raises HQError if it cannot be written; the log then contains no part of it.
        """
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **content}
        line, link = encode_line(self._link, stamped)
        try:
            if self._size and self._size + len(line) > self._rotate_bytes:
                self._rotate()
            self._write(line)
        except OSError as error:
            raise HQError(
                f"The audit log {self.path} cannot be written: {error.strerror}."
            ) from error
        self._link = link

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        # Windows would translate newlines otherwise, which changes the hashes.
        flags |= getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(self.path, flags, 0o600)  # the log may contain prompts
        self._size = os.fstat(self._descriptor).st_size
        sync_folder(self.path.parent)

    def _write(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def _rotate(self) -> None:
        os.close(self._descriptor)  # Windows cannot rename an open file
        self._descriptor = -1
        try:
            os.rename(self.path, next_full_file(self.path))
        finally:
            self._open()


def _move_incomplete_line(path: Path) -> dict[str, Any] | None:
    """Move an incomplete last line to its own file; return the fields of the recovery line."""
    if not path.exists():
        return None
    content = path.read_bytes()
    complete_length = content.rfind(b"\n") + 1
    torn = content[complete_length:]
    if not torn:
        return None
    digest = hashlib.sha256(torn).hexdigest()
    torn_file = path.with_name(f"{path.name}.torn-{digest[:8]}")
    with open(torn_file, "wb") as stream:
        stream.write(torn)
        stream.flush()
        os.fsync(stream.fileno())
    os.truncate(path, complete_length)
    return {"torn_bytes": len(torn), "torn_sha256": digest, "torn_file": torn_file.name}


def _chain_end(path: Path) -> Link:
    """Return the end of the log's chain. Raises HQError if the last line is damaged."""
    for file in reversed(log_files(path)):
        last_line = _last_line(file)
        if last_line:
            try:
                return decode_line(last_line)[1]
            except ChainError as error:
                raise HQError(
                    f"The last line of the audit log {file} is damaged ({error}): run `hq audit "
                    f"verify {path}`, and start a new log with --audit."
                ) from error
    return Link()


def _last_line(file: Path) -> bytes:
    """The last line with its newline; empty for an empty file."""
    with open(file, "rb") as stream:
        return deque(stream, maxlen=1).pop() if file.stat().st_size else b""
