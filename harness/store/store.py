"""The store: outputs of nodes, each in a folder named by a digest of everything it depends on.

A killed node leaves a folder NAME.partial, in which it is continued. A finished folder is renamed,
so a folder NAME is complete; its node.json records what the output was computed from and the
content digest of each file.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hq.storage.atomic import remove_drafts, write_whole

NODE_FILE = "node.json"
LOG_RECORD_FILE = "log.json"
DIGEST_PATTERN = "[0-9a-f]" * 16
_BLOCK = 1 << 22
_PATIENCE_S = 2.0  # a process that waits longer for another one says so

_log = logging.getLogger("hq")


def digest(value: object) -> str:
    """Return the BLAKE2b digest of a JSON value, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file, 16 hex digits."""
    state = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Return what a finished output was computed from, and the digests of its files."""
    record: dict[str, Any] = json.loads((folder / NODE_FILE).read_text(encoding="utf-8"))
    return record


class Store:
    """Outputs in one folder. With `fresh`, each is removed at its first use and computed again."""

    def __init__(self, root: Path, fresh: bool = False) -> None:
        self.root = root
        self._fresh = fresh
        self._used: set[str] = set()

    def __str__(self) -> str:
        return str(self.root)

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the record of a finished output; None if there is none or it is computed again."""
        folder = self.root / name
        finished = not self._outdated(name) and (folder / NODE_FILE).is_file()
        return read_record(folder) if finished else None

    def finished(self, name: str) -> Path | None:
        """Return the folder of a finished output; None if there is none or it is computed again."""
        return None if self._outdated(name) else self._held(name)

    def build(
        self,
        name: str,
        record: Mapping[str, object],
        make: Callable[[Path], None],
        volatile: frozenset[str] = frozenset(),
        spent: float = 0.0,
    ) -> Path:
        """Return the folder of an output; `make(folder)` writes it unless it is finished.

        `record` holds what `name` was derived from. Files in `volatile` have no content digest.
        `spent` are the seconds that parts of the output have taken before.
        """
        with self._locked(name):
            final, partial = self.root / name, self.root / f"{name}.partial"
            if self._held(name) is None:
                partial.mkdir(exist_ok=True)
                remove_drafts(partial)
                started = time.monotonic()
                make(partial)
                seconds = round(spent + time.monotonic() - started, 3)
                outputs = _digests(partial, volatile | {NODE_FILE})
                text = json.dumps(
                    {**record, "outputs": outputs, "seconds": seconds}, indent=1, sort_keys=True
                )
                write_whole(partial / NODE_FILE, text)
                os.rename(partial, final)
                self._publish(name)
        return final

    def renew(self, name: str) -> None:
        """Remove an output if this store is `fresh` and has not used it yet."""
        if self._outdated(name):
            with self._locked(name):
                pass

    def discard(self, name: str) -> None:
        """Remove an output that nothing needs any more, finished or not."""
        with self._locked(name):
            self._remove_folder(f"{name}.partial")
            self._remove(name)

    @contextmanager
    def growing(self, name: str, version: int, record: Mapping[str, object]) -> Iterator[Path]:
        """Lock the folder of a log, so that one process at a time appends to it."""
        key = {"version": version, **record}
        folder = f"{name}-{digest([name, key])}"
        with self._locked(folder):
            (self.root / folder).mkdir(exist_ok=True)
            write_whole(self.root / folder / LOG_RECORD_FILE, json.dumps(key, indent=1))
            yield self.root / folder

    def records(self, stage: str) -> Iterator[dict[str, Any]]:
        """Yield the records of all finished outputs of a stage, newest first."""
        times: dict[Path, float] = {}
        for path in self.root.glob(f"{stage}-{DIGEST_PATTERN}/{NODE_FILE}"):
            with suppress(FileNotFoundError):  # another process may remove it
                times[path] = path.stat().st_mtime
        for path in sorted(times, key=times.__getitem__, reverse=True):
            with suppress(FileNotFoundError):
                yield json.loads(path.read_text(encoding="utf-8"))

    def _outdated(self, name: str) -> bool:
        return self._fresh and name not in self._used

    def _held(self, name: str) -> Path | None:
        """Return the complete folder of an output on this machine, if there is an output."""
        folder = self.root / name
        return folder if (folder / NODE_FILE).is_file() else None

    def _publish(self, name: str) -> None:
        """Make a complete folder known to other machines; here they read the folder itself."""

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Lock a name; a `fresh` store removes its folders at the first use."""
        self.root.mkdir(parents=True, exist_ok=True)
        with _lock(self.root / f"{name}.lock", name):
            if self._fresh and name not in self._used:
                self._remove_folder(f"{name}.partial")
                self._remove(name)
            self._used.add(name)
            yield

    def _remove(self, name: str) -> None:
        """Remove an output, finished or not, wherever it is."""
        self._remove_folder(name)

    def _remove_folder(self, name: str) -> None:
        """Remove a folder if it exists, so that a kill leaves no incomplete folder of that name."""
        folder, removed = self.root / name, self.root / f"{name}.removed"
        if removed.exists():  # by a process that was killed
            shutil.rmtree(removed)
        if folder.exists():
            os.rename(folder, removed)
            shutil.rmtree(removed)


@contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Hold a lock; say so if another process holds it for long."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout:
        _log.warning("Another process computes %s: waiting until it ends.", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _digests(folder: Path, volatile: frozenset[str]) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in names.items() if name not in volatile}
