"""Arrays of an unfinished node, one file per batch, so that a killed run continues."""

from pathlib import Path

import numpy as np
from jaxtyping import Int
from safetensors.numpy import load_file, save_file


class Parts:
    """The files of finished batches in the folder of a node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the finished batches."""
        return frozenset(int(path.stem.partition("-")[2]) for path in self._files())

    def write(self, number: int, rows: Int[np.ndarray, " batch"], **arrays: np.ndarray) -> None:
        """Write the arrays of a batch. A file that a kill leaves incomplete has another name."""
        path = self._path(number)
        incomplete = path.with_suffix(".incomplete")
        tensors = {"rows": rows, **arrays}
        save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, incomplete)
        incomplete.replace(path)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Return the arrays of a batch, `rows` among them."""
        arrays: dict[str, np.ndarray] = load_file(self._path(number))
        return arrays

    def remove(self) -> None:
        """Remove the files of all batches."""
        for path in [*self._files(), *self._folder.glob("batch-*.incomplete")]:
            path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("batch-*.safetensors"))

    def _path(self, number: int) -> Path:
        return self._folder / f"batch-{number}.safetensors"
