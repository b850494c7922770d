"""The store: every stage's output in a folder named by the hash of all that it depends on.

A stage that was killed leaves a partial folder and goes on in it; a finished one is a rename away,
so what stands under its final name is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from hq import __version__


def digest(value: object) -> str:
    """BLAKE2b of a JSON value: 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Store:
    """Artefacts below one folder; with `fresh`, what is found there is built anew."""

    def __init__(self, root: Path, fresh: bool = False) -> None:
        self.root = root
        self._fresh = fresh
        self._built: set[str] = set()

    def build(self, stage: str, inputs: Mapping[str, object], make: Callable[[Path], None]) -> Path:
        """The folder of a stage's output, made by `make(folder)` unless it is there already."""
        # Another release may compute another thing: its artefacts are its own.
        name = f"{stage}-{digest([stage, __version__, inputs])}"
        final, partial = self.root / name, self.root / f"{name}.partial"
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name}.lock"):
            if self._fresh and name not in self._built:
                shutil.rmtree(final, ignore_errors=True)
                shutil.rmtree(partial, ignore_errors=True)
            if not final.exists():
                partial.mkdir(exist_ok=True)
                make(partial)
                (partial / "inputs.json").write_text(json.dumps(inputs, indent=1, sort_keys=True))
                os.rename(partial, final)
        self._built.add(name)
        return final
