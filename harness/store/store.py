"""The store: every stage's output in a folder named by the digest of all that it depends on.

A stage that was killed leaves a partial folder and continues in it. A finished one is renamed, so
a folder under its final name is complete. Each folder's inputs.json records what was hashed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from hq.storage.atomic import remove_drafts, write_whole

INPUTS_FILE = "inputs.json"


@dataclass(frozen=True)
class Stage:
    """A step from files to files. Its version is part of the key of everything that it makes.

    Raise `version` whenever a change of the code can change the output: artefacts in the store are
    then made again. `sources` are the modules where the stage's computation starts, beside the
    module that defines it; `harness.stages.lock` digests them and all that they import.
    """

    name: str
    version: int = 1
    sources: tuple[str, ...] = ()


def digest(value: object) -> str:
    """BLAKE2b of a JSON value: 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def inputs_of(folder: Path) -> dict[str, Any]:
    """All that the artefact in `folder` was hashed by, as written when it was built."""
    inputs: dict[str, Any] = json.loads((folder / INPUTS_FILE).read_text(encoding="utf-8"))
    return inputs


class Store:
    """Artefacts below one folder; with `fresh`, what is found there is built anew."""

    def __init__(self, root: Path, fresh: bool = False) -> None:
        self.root = root
        self._fresh = fresh
        self._met: set[str] = set()

    def build(
        self, stage: Stage, inputs: Mapping[str, object], make: Callable[[Path], None]
    ) -> Path:
        """The folder of a stage's output, made by `make(folder)` unless it is there already."""
        with self._locked(stage, inputs) as (final, whole):
            partial = final.with_name(f"{final.name}.partial")
            if not final.exists():
                partial.mkdir(exist_ok=True)
                remove_drafts(partial)
                make(partial)
                _write_inputs(partial, whole)
                os.rename(partial, final)
        return final

    @contextmanager
    def growing(self, stage: Stage, inputs: Mapping[str, object]) -> Iterator[Path]:
        """A folder that is never finished: whoever holds it, alone, appends to what is there."""
        with self._locked(stage, inputs) as (folder, whole):
            folder.mkdir(exist_ok=True)
            _write_inputs(folder, whole)
            yield folder

    @contextmanager
    def _locked(
        self, stage: Stage, inputs: Mapping[str, object]
    ) -> Iterator[tuple[Path, dict[str, object]]]:
        """An artefact's place and what names it; at first sight the place is emptied if `fresh`."""
        whole = {"version": stage.version, **inputs}
        name = f"{stage.name}-{digest([stage.name, whole])}"
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name}.lock"):
            if self._fresh and name not in self._met:
                for folder in (name, f"{name}.partial"):
                    shutil.rmtree(self.root / folder, ignore_errors=True)
            yield self.root / name, whole
        self._met.add(name)


def _write_inputs(folder: Path, inputs: Mapping[str, object]) -> None:
    write_whole(folder / INPUTS_FILE, json.dumps(inputs, indent=1, sort_keys=True))
