"""The regression check: a run's tables against committed ones, column by column.

Tolerances stand in `tolerances.toml` beside the committed tables:

    [detection]
    auroc = {within = 0.03, worse = "lower"}

A number regresses when it is worse by more than `within`; `worse` is "lower", "higher" or "either".
Columns without a line are not compared.
"""

import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from harness.schema import TABLES
from harness.tables import PROVENANCE_FILE, TABLE_NAMES, read_table
from hq.errors import HQError

TOLERANCES_FILE = "tolerances.toml"


class Tolerance(BaseModel):
    """How far a column may move, and which direction is a regression."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    within: Annotated[float, Field(ge=0)]
    worse: Literal["lower", "higher", "either"] = "either"

    def exceeded(self, expected: float, found: float) -> bool:
        """Whether the change is a regression."""
        change = found - expected
        bad = {"lower": -change, "higher": change, "either": abs(change)}[self.worse]
        return not bad <= self.within  # NaN regresses


@dataclass(frozen=True, slots=True)
class Difference:
    """One compared number."""

    table: str
    row: str
    column: str
    expected: float
    found: float
    tolerance: Tolerance

    @property
    def regressed(self) -> bool:
        """Whether it is out of tolerance."""
        return self.tolerance.exceeded(self.expected, self.found)


def compare(run: Path, against: Path) -> list[Difference]:
    """Every compared number of the rows that the run has.

    Raises HQError when either folder lacks tables, tolerances are malformed, the models differ, or
    no row of the run is in the committed tables.
    """
    _require_same_model(run, against)
    tolerances = _tolerances(against)
    differences = [d for name in TABLE_NAMES for d in _differences(name, run, against, tolerances)]
    if not differences:
        raise HQError(f"{run} and {against} have no row in common: check another study's results.")
    return differences


def accept(run: Path, into: Path) -> None:
    """Makes a run's tables the committed ones; tolerances that are there stay."""
    names = [f"{name}.csv" for name in TABLE_NAMES] + ["tables.md", PROVENANCE_FILE, "neurons.json"]
    missing = [name for name in names if not (run / name).is_file()]
    if missing:
        raise HQError(f"{run} has no {missing[0]}: give the folder of a finished run.")
    into.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(run / name, into / name)
    if not (into / TOLERANCES_FILE).exists():
        default = files("harness") / TOLERANCES_FILE
        (into / TOLERANCES_FILE).write_text(default.read_text())


def _differences(
    name: str, run: Path, against: Path, tolerances: dict[str, dict[str, Tolerance]]
) -> Iterator[Difference]:
    keys = list(TABLES[name][1])
    columns = tolerances.get(name, {})
    expected, found = read_table(against, name), read_table(run, name)
    for side, where in ((expected, against), (found, run)):
        lacking = [c for c in [*keys, *columns] if c not in side.columns]
        if lacking:
            raise HQError(f"{where / name}.csv has no column {lacking[0]!r}: run the study again.")
    both = expected.join(found, on=keys, suffix=".found", how="inner", maintain_order="left")
    for row in both.iter_rows(named=True):
        label = " ".join(str(row[key]) for key in keys)
        for column, tolerance in columns.items():
            before = _number(row[column], against, name, column)
            after = _number(row[f"{column}.found"], run, name, column)
            yield Difference(name, label, column, before, after, tolerance)


def _number(value: object, folder: Path, table: str, column: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise HQError(
            f"{folder / table}.csv has {value!r} in column {column!r}, which is no number: "
            "run the study again, or drop the column's tolerance."
        ) from error


def _tolerances(folder: Path) -> dict[str, dict[str, Tolerance]]:
    path = folder / TOLERANCES_FILE
    if not path.is_file():
        raise HQError(f"{folder} has no {TOLERANCES_FILE}: `hq check --accept` writes one.")
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
        tolerances = TypeAdapter(dict[str, dict[str, Tolerance]]).validate_python(parsed)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HQError(f"{path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise HQError(f"{path}: {where}: {first['msg']}.") from error
    unknown = [name for name in tolerances if name not in TABLE_NAMES]
    if unknown:
        raise HQError(f"{path} names a table {unknown[0]!r}: there are {', '.join(TABLE_NAMES)}.")
    return tolerances


def _require_same_model(run: Path, against: Path) -> None:
    ours, theirs = (_fingerprint(folder) for folder in (run, against))
    if ours != theirs:
        raise HQError(
            f"{run} is of model {ours}, {against} of model {theirs}: check a run of the same model."
        )


def _fingerprint(folder: Path) -> str:
    path = folder / PROVENANCE_FILE
    try:
        return str(TypeAdapter(dict[str, object]).validate_json(path.read_text())["fingerprint"])
    except (OSError, ValidationError, KeyError) as error:
        raise HQError(
            f"{folder} has no readable {PROVENANCE_FILE}: give a finished run."
        ) from error


def as_frame(differences: list[Difference]) -> pl.DataFrame:
    """The differences as a table, regressions first."""
    rows = [
        {
            "table": d.table,
            "row": d.row,
            "column": d.column,
            "expected": d.expected,
            "found": d.found,
            "tolerance": d.tolerance.within,
            "regressed": d.regressed,
        }
        for d in sorted(differences, key=lambda d: not d.regressed)
    ]
    return pl.DataFrame(rows)
