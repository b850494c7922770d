"""The audit log: one line a response, appended, chained, on the disk before the answer ends.

`LOG` is written to; once it is large it becomes `LOG.000001` and so on, and the chain goes on in a
new one. What a kill left of a last line is set aside beside the log, and the log says so.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.serve.chain import ChainError, Link, content_of, line_of
from hq.errors import HQError

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

    @property
    def link(self) -> Link:
        """Where the chain stands."""
        return self._link

    def append(self, content: Mapping[str, Any]) -> None:
        """Adds a line, and returns once it is on the disk.

        Raises HQError where it cannot be written; nothing of it is then left in the log.
        """
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **content}
        line, link = line_of(self._link, stamped)
        try:
            if self._size and self._size + len(line) >= self._rotate_bytes:
                self._rotate()
            self._write(line + b"\n")
        except OSError as error:
            raise HQError(
                f"The audit log {self.path} cannot be written: {error.strerror}."
            ) from error
        self._link = link

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(self.path, flags, 0o600)  # prompts may be in it
        self._size = os.fstat(self._file).st_size
        _sync_folder(self.path)

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
        number = max(map(_number, rotated(self.path)), default=0) + 1
        os.rename(self.path, self.path.with_name(f"{self.path.name}.{number:06}"))
        os.close(self._file)
        self._file = -1
        self._open()


def rotated(path: Path) -> list[Path]:
    """The full files of a log, the oldest first."""
    found = path.parent.glob(f"{path.name}.[0-9][0-9][0-9][0-9][0-9][0-9]")
    return sorted(found, key=_number)


def files_of(path: Path) -> list[Path]:
    """All files of a log, the oldest first. Raises HQError where there is none."""
    found = [*rotated(path), *([path] if path.exists() else [])]
    if not found:
        raise HQError(f"There is no audit log {path}: name the file that `hq serve --audit` wrote.")
    return found


def lines_of(file: Path) -> Iterator[bytes]:
    """The lines of one file without their newlines, one that was cut off among them."""
    with open(file, "rb") as stream:
        for line in stream:
            yield line.removesuffix(b"\n")


def _number(path: Path) -> int:
    return int(path.suffix[1:])


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
    for file in reversed([*rotated(path), path]):
        last = _last_line(file)
        if last is not None:
            try:
                content, digest = content_of(last)
                return Link(int(content["seq"]) + 1, digest)
            except (ChainError, KeyError, ValueError) as error:
                raise HQError(
                    f"The last line of the audit log {file} is damaged ({error}): see "
                    f"`hq audit verify {path}`, and move the log away to begin a new one."
                ) from error
    return Link()


def _last_line(file: Path) -> bytes | None:
    content = file.read_bytes() if file.exists() else b""
    return content.removesuffix(b"\n").rsplit(b"\n", 1)[-1] if content else None


def _sync_folder(path: Path) -> None:
    """Makes a new name in a folder last."""
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
