"""The audit log: one line a response, appended, chained, on the disk before the answer ends.

`LOG` is written to; once it is large it becomes `LOG.000001` and so on, and the chain goes on in a
new one. What a kill left of a last line is set aside beside the log, and the log says so.
"""

import hashlib
import os
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.serve.chain import ChainError, Link, content_of, line_of
from harness.serve.logfiles import all_files, next_full
from hq.errors import HQError
from hq.storage.atomic import sync_folder

ROTATE_BYTES = 64 << 20


class AuditLog:
    """A log that one process appends to. A context manager; `close` lets another have it.

    Raises HQError for a log that another process writes, that cannot be written, or whose last
    line is damaged.
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
                f"Another server writes the audit log {path}: name another with --audit."
            ) from error
        self._file = -1
        try:
            torn = _set_torn_aside(path)
            self._link = _end_of(path)
            self._open()
            if torn is not None:
                self.append({"kind": "recovery", **torn})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "AuditLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing happens the second time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()

    def append(self, content: Mapping[str, Any]) -> None:
        """Adds a line, and returns once it is on the disk.

        Raises HQError where it cannot be written; nothing of it is then left in the log.
        """
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **content}
        line, link = line_of(self._link, stamped)
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
        flags |= getattr(
            os, "O_BINARY", 0
        )  # on Windows newlines would change, and with them hashes
        self._file = os.open(self.path, flags, 0o600)  # prompts may be in it
        self._size = os.fstat(self._file).st_size
        sync_folder(self.path.parent)

    def _write(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _rotate(self) -> None:
        os.close(self._file)  # Windows does not rename an open file
        self._file = -1
        try:
            os.rename(self.path, next_full(self.path))
        finally:
            self._open()


def _set_torn_aside(path: Path) -> dict[str, Any] | None:
    """Moves a last line without its end out of the log; what there was of it."""
    if not path.exists():
        return None
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    torn = content[whole:]
    if not torn:
        return None
    digest = hashlib.sha256(torn).hexdigest()
    aside = path.with_name(f"{path.name}.torn-{digest[:8]}")
    with open(aside, "wb") as stream:
        stream.write(torn)
        stream.flush()
        os.fsync(stream.fileno())
    os.truncate(path, whole)
    return {"torn_bytes": len(torn), "torn_sha256": digest, "torn_file": aside.name}


def _end_of(path: Path) -> Link:
    """Where the chain stands at the end of the log. Raises HQError for a damaged last line."""
    for file in reversed(all_files(path)):
        last = _last_line(file)
        if last:
            try:
                return content_of(last)[1]
            except ChainError as error:
                raise HQError(
                    f"The last line of the audit log {file} is damaged ({error}): see `hq audit "
                    f"verify {path}`, and begin a new log with --audit."
                ) from error
    return Link()


def _last_line(file: Path) -> bytes:
    """With its newline; empty where there is none."""
    with open(file, "rb") as stream:
        return deque(stream, maxlen=1).pop() if file.stat().st_size else b""
