"""The store: outputs of nodes, each in a folder named by the digest of all that it depends on.

A node that was killed leaves a partial folder and is continued in it. A finished one is renamed, so
a folder under its final name is complete, and its node.json says what it was made from and the
content digest of every file in it.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from hq.storage.atomic import remove_drafts, write_whole

RECORD_FILE = "node.json"
LOG_RECORD_FILE = "log.json"
_BLOCK = 1 << 22


def digest(value: object) -> str:
    """BLAKE2b of a JSON value: 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes: 16 hex digits."""
    state = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def record_of(folder: Path) -> dict[str, Any]:
    """What a finished output was made from, and the digests of its files."""
    record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    return record


class Store:
    """Outputs below one folder; with `fresh`, those found at first sight are made again."""

    def __init__(self, root: Path, fresh: bool = False) -> None:
        self.root = root
        self._fresh = fresh
        self._met: set[str] = set()

    def finished(self, name: str) -> Path | None:
        """The folder of a finished output, unless it is to be made again."""
        folder = self.root / name
        stale = self._fresh and name not in self._met
        return folder if not stale and (folder / RECORD_FILE).is_file() else None

    def build(
        self,
        name: str,
        record: Mapping[str, object],
        make: Callable[[Path], None],
        volatile: frozenset[str] = frozenset(),
    ) -> Path:
        """The folder of an output, made by `make(folder)` unless it is finished.

        `record` is what `name` was derived from. Files in `volatile` get no content digest.
        """
        with self._locked(name):
            final, partial = self.root / name, self.root / f"{name}.partial"
            if not final.exists():
                partial.mkdir(exist_ok=True)
                remove_drafts(partial)
                started = time.monotonic()
                make(partial)
                seconds = round(time.monotonic() - started, 3)
                outputs = _digests(partial, volatile)
                text = json.dumps(
                    {**record, "outputs": outputs, "seconds": seconds}, indent=1, sort_keys=True
                )
                write_whole(partial / RECORD_FILE, text)
                os.rename(partial, final)
        return final

    @contextmanager
    def growing(self, name: str, version: int, record: Mapping[str, object]) -> Iterator[Path]:
        """A folder that is never finished: its one holder at a time appends to what it has."""
        whole = {"version": version, **record}
        folder = f"{name}-{digest([name, whole])}"
        with self._locked(folder):
            (self.root / folder).mkdir(exist_ok=True)
            write_whole(self.root / folder / LOG_RECORD_FILE, json.dumps(whole, indent=1))
            yield self.root / folder

    def records(self, stage: str) -> Iterator[dict[str, Any]]:
        """The records of all finished outputs of a stage, newest first."""
        files = self.root.glob(f"{stage}-*/{RECORD_FILE}") if self.root.is_dir() else ()
        for path in sorted(files, key=lambda path: -path.stat().st_mtime):
            if not path.parent.name.endswith(".partial"):
                yield json.loads(path.read_text(encoding="utf-8"))

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Holds a name; at first sight its folders are removed if the store is `fresh`."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name}.lock"):
            if self._fresh and name not in self._met:
                for folder in (name, f"{name}.partial"):
                    shutil.rmtree(self.root / folder, ignore_errors=True)
            self._met.add(name)
            yield


def _digests(folder: Path, volatile: frozenset[str]) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in names.items() if name not in volatile}
