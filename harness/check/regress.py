"""The regression check: comparison of a run's tables with committed ones, by column.

Tolerances are in `tolerances.toml` beside the committed tables:

    [detection]
    auroc = {within = 0.03, worse = "lower"}

A number regresses when it is worse by more than `within`; `worse` is "lower", "higher" or "either".
With `relative = true`, `within` is a share of the committed number; with `only = "matched"`, only
rows with that key are compared. Columns without a tolerance are not compared.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import TypeAdapter, ValidationError

from harness.check.tolerance import Tolerance
from harness.experiments import EXPERIMENTS
from harness.tables.files import read_table
from harness.tables.provenance import definition, difference, read_provenance
from harness.tables.schema import Tables
from hq.errors import HQError

TOLERANCES_FILE = "tolerances.toml"


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
        """Whether the change exceeds the tolerance."""
        return self.tolerance.exceeded(self.expected, self.found)


def compare(run: Path, against: Path) -> list[Difference]:
    """Return every compared number of the run's rows.

    Raises HQError if a folder lacks tables, if tolerances are malformed, if models or studies
    differ, or if no row of the run is in the committed tables.
    """
    tables = _require_same_study(run, against)
    tolerances = _tolerances(against, tables)
    differences = [
        d
        for name, (_, keys) in tables.items()
        for d in _differences(name, list(keys), run, against, tolerances)
    ]
    if not differences:
        raise HQError(f"{run} and {against} have no row in common: give results of the same study.")
    return differences


def _differences(
    name: str,
    keys: list[str],
    run: Path,
    against: Path,
    tolerances: dict[str, dict[str, Tolerance]],
) -> Iterator[Difference]:
    columns = tolerances.get(name, {})
    expected, found = read_table(against, name), read_table(run, name)
    for side, where in ((expected, against), (found, run)):
        missing = [c for c in [*keys, *columns] if c not in side.columns]
        if missing:
            raise HQError(f"{where / name}.csv has no column {missing[0]!r}: run the study again.")
    if expected.is_empty() or found.is_empty():
        return  # columns of a CSV without rows have no type for the join
    for column, tolerance in columns.items():
        rows = expected.select(keys).iter_rows()
        if tolerance.only is not None and not any(map(tolerance.covers, rows)):
            raise HQError(
                f"{against / TOLERANCES_FILE}: {name}.{column} is for {tolerance.only!r} only, "
                "which no row has: correct it."
            )
    both = expected.join(found, on=keys, suffix=".found", how="inner", maintain_order="left")
    for row in both.iter_rows(named=True):
        values = [str(row[key]) for key in keys]
        compared = {c: t for c, t in columns.items() if t.covers(values)}
        for column, tolerance in compared.items():
            before = _number(row[column], against, name, column)
            after = _number(row[f"{column}.found"], run, name, column)
            yield Difference(name, " ".join(values), column, before, after, tolerance)


def _number(value: object, folder: Path, table: str, column: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise HQError(
            f"{folder / table}.csv has {value!r} in column {column!r}, which is not a number: "
            "run the study again, or remove the tolerance of that column."
        ) from error


def _tolerances(folder: Path, tables: Tables) -> dict[str, dict[str, Tolerance]]:
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
    unknown = [name for name in tolerances if name not in tables]
    if unknown:
        raise HQError(f"{path} has an unknown table {unknown[0]!r}: known are {', '.join(tables)}.")
    return tolerances


def _require_same_study(run: Path, against: Path) -> Tables:
    """Return the tables of both. Raises HQError if they are of other models or studies."""
    new, committed = read_provenance(run), read_provenance(against)
    models = new["fingerprint"], committed["fingerprint"]
    if models[0] != models[1]:
        raise HQError(
            f"{run} is of model {models[0]}, {against} of model {models[1]}: "
            "check a run of the same model."
        )
    changed = difference(
        {key: new[key] for key in ("kind", "study")} | {"definition": definition(new)},
        {key: committed[key] for key in ("kind", "study")} | {"definition": definition(committed)},
    )
    if changed:
        raise HQError(
            f"{run} and {against} are of other studies ({changed}): check a run of the same study."
        )
    return EXPERIMENTS[new["kind"]].tables


def as_frame(differences: list[Difference]) -> pl.DataFrame:
    """Return the differences as a table, regressions first."""
    rows = [
        {
            "table": d.table,
            "row": d.row,
            "column": d.column,
            "expected": d.expected,
            "found": d.found,
            "tolerance": d.tolerance.allowed(d.expected),
            "regressed": d.regressed,
        }
        for d in sorted(differences, key=lambda d: not d.regressed)
    ]
    return pl.DataFrame(rows)
