"""The folder of a finished run, read without its model: tables, provenance, samples and scores."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from harness.report.traced import TracedTables
from harness.tables.contents import read_contents, read_neurons, stated_samples
from harness.tables.files import RESULTS_FILE, read_table
from harness.tables.provenance import Facts, read_provenance
from hq.errors import HQError

SAMPLES_FILE = "samples.jsonl"
SCORES_FILE = "scores.csv"
TOKEN_SCORES_FILE = "token_scores.jsonl"  # noqa: S105
REFERENCE = "fp16"
T = TypeVar("T", bound=BaseModel)


class RunSample(BaseModel):
    """A line of samples.jsonl, without its token ids."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    relation: str
    question: str
    text: str
    hallucinated: bool
    unit: str
    fold: int


class TokenScores(BaseModel):
    """A line of token_scores.jsonl."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    precision: str
    id: str
    tokens: list[str]
    probe: list[float]


class RunNeuron(BaseModel):
    """A neuron of neurons.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    layer: int
    index: int
    weight: float


class RunFolder:
    """A finished run. Raises HQError if it has no readable results.json and provenance.json.

    Which tables it has, and what their columns mean, is in its results.json, so that runs of
    experiments of other packages can be read without these packages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        contents = read_contents(path)
        self.provenance: Facts = read_provenance(path)
        self.kind, self.study, self.fingerprint = (
            contents.kind,
            contents.study,
            contents.fingerprint,
        )
        self._tables = contents.tables
        self.tables = TracedTables(path)
        self._frames: dict[str, pl.DataFrame] = {}
        for name, table in self._tables.items():  # before anything is drawn
            lacking = [column for column in table.columns if column not in self.frame(name).columns]
            if lacking:
                raise HQError(
                    f"{path / name}.csv lacks the column {lacking[0]!r} that {RESULTS_FILE} "
                    "describes: write both files in one run."
                )

    @property
    def names(self) -> list[str]:
        """The tables, in the order of the run."""
        return list(self._tables)

    def has(self, table: str) -> bool:
        """Return whether the folder has a table with at least one row."""
        return table in self._tables and self.frame(table).height > 0

    def frame(self, table: str) -> pl.DataFrame:
        """Read a table. Raises HQError if it is missing or cannot be read as CSV."""
        if table not in self._frames:
            self._frames[table] = read_table(self.path, table)
        return self._frames[table]

    def keys(self, table: str) -> list[str]:
        """Return the key columns of a table."""
        return self._tables[table].keys

    def columns(self, table: str) -> Mapping[str, str]:
        """Return the description of each column of a table; an estimate is one column."""
        return self._tables[table].columns

    def estimates(self, table: str) -> list[str]:
        """Return the columns that have an interval."""
        has = set(self.frame(table).columns)
        return [c for c in self.columns(table) if {f"{c}_low", f"{c}_high"} <= has]

    def file(self, name: str) -> pl.DataFrame | None:
        """Read another CSV file of the run; None if the folder lacks it."""
        path = self.path / name
        return read_table(self.path, path.stem) if path.is_file() else None

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.provenance.get("model", {}).get("name", self.fingerprint))

    @cached_property
    def neurons(self) -> list[RunNeuron] | None:
        """The neurons of the FP16 probe; None if the folder has no neurons.json."""
        content = read_neurons(self.path)
        return None if content is None else _Neurons.validate_python(content.get("neurons"))

    @property
    def samples_digest(self) -> str | None:
        """The digest of the samples that the neurons were identified on; None if not recorded."""
        return stated_samples(self.path)

    @cached_property
    def samples(self) -> list[RunSample] | None:
        """The samples; None if the folder, such as a committed one, lacks them."""
        path = self.path / SAMPLES_FILE
        return [*_lines(RunSample, path)] if path.is_file() else None

    @cached_property
    def scores(self) -> pl.DataFrame | None:
        """Precision, sample, score, threshold and entropy; None if the folder lacks them.

        Raises HQError if a score is of a sample that samples.jsonl does not have.
        """
        frame, samples = self.file(SCORES_FILE), self.samples
        if frame is None or samples is None:
            return None
        kept = pl.DataFrame(
            [(s.id, s.hallucinated, s.unit, s.fold) for s in samples],
            schema={
                "sample": pl.String,
                "hallucinated": pl.Boolean,
                "unit": pl.String,
                "fold": pl.Int64,
            },
            orient="row",
        )
        frame = frame.with_columns(pl.col("sample").cast(pl.String))
        joined = frame.join(kept, on="sample", how="left", maintain_order="left")
        if joined["hallucinated"].null_count():
            raise HQError(
                f"{self.path / SCORES_FILE} scores samples that {SAMPLES_FILE} does not have: "
                "write both files in one run."
            )
        return joined

    def token_scores(self) -> Iterator[TokenScores]:
        """Yield the lines of token_scores.jsonl; none if the folder lacks it."""
        path = self.path / TOKEN_SCORES_FILE
        return _lines(TokenScores, path) if path.is_file() else iter(())


_Neurons = TypeAdapter(list[RunNeuron])


def read_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Read the folders of runs. Raises HQError if one is not finished, or is given twice."""
    runs: list[RunFolder] = []
    for path in paths:
        if any(path.resolve() == run.path.resolve() for run in runs):
            raise HQError(f"{path} is given twice: give each run once.")
        runs.append(RunFolder(path))
    return runs


def require_one_model(runs: Sequence[RunFolder]) -> None:
    """Raises HQError, naming both, if two runs are of different models."""
    for run in runs[1:]:
        if run.fingerprint != runs[0].fingerprint:
            raise HQError(
                f"{runs[0].path} is a run of {runs[0].model} ({runs[0].fingerprint}) and "
                f"{run.path} one of {run.model} ({run.fingerprint}): give runs of one model, or "
                "compare two of them with --compare."
            )


def _lines(kind: type[T], path: Path) -> Iterator[T]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield kind.model_validate_json(line)
            except ValidationError as error:
                raise HQError(
                    f"Line {number} of {path} is not readable ({error.errors()[0]['msg']}): run "
                    "the experiment again."
                ) from error
