"""A random correlated design of any width, written to a file in constant memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_WIDTH = 8192  # columns that are drawn at a time
_GROUP = 16  # adjacent columns that share a factor
_CORRELATION = 0.6  # of two columns of a group
_TRUE = 8  # columns that determine the label
_EFFECT = 1.0  # change of the log odds per standard deviation of a true column


class Design(NamedTuple):
    """An .npy file [n, p], float32, column after column, and its labels."""

    path: Path
    y: Int[np.ndarray, " n"]

    @property
    def matrix(self) -> Float[np.ndarray, "n p"]:
        """The features, mapped into memory."""
        mapped: Float[np.ndarray, "n p"] = np.load(self.path, mmap_mode="r")
        return mapped

    def standardised(self, columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, "n k"]:
        """Return a few columns in float64, with mean 0 and variance 1."""
        values = self.matrix[:, columns].astype(np.float64)
        standard: Float[np.ndarray, "n k"] = (values - values.mean(axis=0)) / values.std(axis=0)
        return standard


def write_design(path: Path, seed: int, n: int, p: int) -> Design:
    """Draw groups of correlated normal columns, and labels from a few columns of different groups.

    Memory holds one block of columns, whatever p is.
    """
    rng = np.random.default_rng(seed)
    truth = np.linspace(0, p - 1, _TRUE).astype(int)
    signs = rng.choice([-1.0, 1.0], _TRUE)
    odds = np.zeros(n)
    header = {"descr": "<f4", "fortran_order": True, "shape": (n, p)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, p, _WIDTH):
            block = _block(rng, n, min(_WIDTH, p - start))  # [columns, n]
            file.write(block.astype("<f4", copy=False).tobytes())
            here = (truth >= start) & (truth < start + len(block))
            odds += _EFFECT * signs[here] @ block[truth[here] - start]
    return Design(path, (odds + rng.logistic(size=n) > 0).astype(np.int64))


def objectives(
    design: Design,
    Cs: Sequence[float],
    solutions: "Sequence[Solution]",
) -> Float[np.ndarray, " c"]:
    """Return C · Σ log-loss + ‖w‖₁ of each solution, in float64."""
    signs = np.where(design.y == 1, 1.0, -1.0)
    values = []
    for C, (columns, weights, intercept) in zip(Cs, solutions, strict=True):
        decision = design.standardised(columns) @ weights + intercept
        loss = np.logaddexp(0, -signs * decision).sum()
        values.append(C * loss + np.abs(weights).sum())
    return np.array(values)


class Solution(NamedTuple):
    """The non-zero weights, of standardised columns, and the intercept."""

    columns: Int[np.ndarray, " k"]
    weights: Float[np.ndarray, " k"]
    intercept: float


def _block(rng: np.random.Generator, n: int, columns: int) -> Float[np.ndarray, "b n"]:
    factors = rng.standard_normal((-(-columns // _GROUP), n), dtype=np.float32)
    block = rng.standard_normal((columns, n), dtype=np.float32)
    block *= np.float32(np.sqrt(1 - _CORRELATION))
    block += np.float32(np.sqrt(_CORRELATION)) * factors.repeat(_GROUP, axis=0)[:columns]
    return block
