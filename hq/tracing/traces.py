"""Traces on disk: one .npy file per measure and span, and a JSON file that describes them.

Rows are written as batches come, so memory does not grow with n, and an interrupted trace resumes
with the missing batches.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, ValidationError

from hq.backends.base import Backend, TraceBatch, require_finite
from hq.errors import HQError
from hq.models.audit import AuditRow
from hq.neurons.cett import Measure, Span
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.storage.atomic import write_whole

INFO_FILE = "trace.json"
_DRAFT_FILE = "trace.draft.json"
_BATCHES_FILE = "batches.txt"
StorageType = Literal["float32"]  # float16 holds neither contributions nor most shares


class TraceInfo(BaseModel):
    """What a folder of traces holds, and how it was computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelIdentity
    precision: str
    compute: str
    n: int
    exchanges: str  # digest of the token ids: equal if the same tokens were traced
    measures: tuple[Measure, ...]
    spans: tuple[Span, ...]
    dtype: StorageType
    weight_bytes: int
    audit: tuple[AuditRow, ...]
    # Flat indices, ascending, as in Backend.
    missing: tuple[int, ...] = ()
    unmatched: tuple[int, ...] = ()


def exchanges_digest(exchanges: Sequence[PromptResponse]) -> str:
    """BLAKE2b of all token ids, prompts and responses kept apart: 16 hex digits."""
    ids = json.dumps([[e.prompt, e.response] for e in exchanges], separators=(",", ":"))
    return hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()


class TraceWriter:
    """Writes batches of traces into a folder, and knows which batches are there.

    No file stays open between batches. Raises HQError if the folder holds the beginning of another
    trace.
    """

    def __init__(self, folder: Path, info: TraceInfo) -> None:
        self._folder = folder
        self._info = info
        folder.mkdir(parents=True, exist_ok=True)
        self._draft = folder / _DRAFT_FILE
        if not self._draft.exists():
            write_whole(self._draft, info.model_dump_json(indent=1) + "\n")
        elif _read_info(self._draft) != info:
            raise HQError(f"{folder} holds the beginning of another trace: name another folder.")
        shape = (info.n, *info.model.space.shape)
        self._files = {
            (measure, span): _array_file(folder / f"{measure}.{span}.npy", shape, info.dtype)
            for measure in info.measures
            for span in info.spans
        }
        self._log = folder / _BATCHES_FILE

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the batches that are completely written."""
        if not self._log.exists():
            return frozenset()
        lines = self._log.read_text(encoding="utf-8").split("\n")
        return frozenset(map(int, lines[:-1]))  # what follows the last newline was cut off

    def write(self, batch: TraceBatch) -> None:
        """Write the rows of a batch, then record its number.

        Raises HQError if the batch lacks a measure or span of the folder, or if values are not
        finite in the type they are stored in.
        """
        for measure, span in self._files:
            values = batch.features(measure, span).values.astype(self._info.dtype, copy=False)
            require_finite(values, self._info.precision)
            path, offset = self._files[measure, span]
            with path.open("r+b") as file:
                for row, value in zip(batch.rows, values, strict=True):
                    file.seek(offset + int(row) * value.nbytes)
                    file.write(value.tobytes())
        # The files are closed: what the log names is written, even if the process is killed now.
        with self._log.open("a", encoding="utf-8", newline="\n") as log:
            log.write(f"{batch.number}\n")

    def close(self, norms: Float[np.ndarray, " p"]) -> None:
        """Write norms and description, which completes the folder."""
        np.save(self._folder / "norms.npy", norms.reshape(self._info.model.space.shape))
        os.replace(self._draft, self._folder / INFO_FILE)
        self._log.unlink(missing_ok=True)


def describe(
    backend: Backend,
    exchanges: Sequence[PromptResponse],
    measures: tuple[Measure, ...],
    spans: tuple[Span, ...],
) -> TraceInfo:
    """The description of a trace of `exchanges` by `backend`."""
    return TraceInfo(
        model=backend.identity,
        precision=backend.precision,
        compute=backend.compute,
        n=len(exchanges),
        exchanges=exchanges_digest(exchanges),
        measures=measures,
        spans=spans,
        dtype="float32",
        weight_bytes=backend.weight_bytes(),
        audit=tuple(backend.audit()),
        missing=tuple(sorted(backend.missing)),
        unmatched=tuple(sorted(backend.unmatched)),
    )


class Traces:
    """A folder of traces, opened to read; arrays are memory-mapped."""

    def __init__(self, folder: Path, info: TraceInfo) -> None:
        self.folder = folder
        self.info = info

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises HQError if the folder is missing, unfinished or damaged."""
        path = folder / INFO_FILE
        if not path.is_file():
            raise HQError(f"{folder} holds no finished trace: run `hq trace` into it first.")
        return cls(folder, _read_info(path))

    @property
    def norms(self) -> Float[np.ndarray, " p"]:
        """‖W_down[:, i]‖₂ of the variant that was traced."""
        norms: Float[np.ndarray, " p"] = np.load(self.folder / "norms.npy").ravel()
        return norms

    def matrix(self, measure: Measure, span: Span) -> Float[np.ndarray, "n p"]:
        """The feature matrix of one measure over one span, one column per neuron.

        Raises HQError if it was not traced, or if its file is damaged.
        """
        path = self.folder / f"{measure}.{span}.npy"
        if measure not in self.info.measures or span not in self.info.spans or not path.is_file():
            raise HQError(
                f"{self.folder} has no {measure} over the {span} span: trace with "
                f"--measures {measure} --spans {span}."
            )
        expected = (self.info.n, *self.info.model.space.shape)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise HQError(f"{path} is damaged or truncated: trace again.") from error
        if array.shape != expected:
            raise HQError(f"{path} has shape {array.shape}, not {expected}: trace again.")
        flat: Float[np.ndarray, "n p"] = array.reshape(self.info.n, -1)
        return flat

    def features(self, measure: Measure, span: Span) -> Features:
        """The matrix with its measure, span and model, for `identify` and `NeuronSet.score`."""
        info, values = self.info, self.matrix(measure, span)
        missing = frozenset(info.missing)
        return Features(values, measure, span, info.model, info.precision, missing)


def _read_info(path: Path) -> TraceInfo:
    """The description of a trace. Raises HQError if it is damaged."""
    try:
        return TraceInfo.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        raise HQError(f"{path} is damaged ({first['msg']}): trace again.") from error


def magnitudes(
    traces: Traces, span: Span, rows: Int[np.ndarray, " row"]
) -> Float[np.ndarray, " p"]:
    """Mean contribution of every neuron over a span of these rows: controls match it."""
    mean: Float[np.ndarray, " p"] = traces.matrix("contribution", span)[rows].mean(axis=0)
    return mean


def _array_file(path: Path, shape: tuple[int, ...], dtype: StorageType) -> tuple[Path, int]:
    """Path and data offset of an .npy file, which is created if it is missing."""
    if not path.exists():
        part = path.with_suffix(".part")  # a kill must not leave a short file under the final name
        array = np.lib.format.open_memmap(part, mode="w+", dtype=np.dtype(dtype), shape=shape)
        del array  # a mapped file cannot be renamed on Windows
        os.replace(part, path)
    return path, int(np.load(path, mmap_mode="r").offset)
