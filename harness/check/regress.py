"""The regression check: comparison of a run's tables with committed ones, by column.

Tolerances are in `tolerances.toml` beside the committed tables:

    [detection]
    auroc = {half_widths = 0.1, other_samples = 0.5, worse = "lower"}

A number regresses if it is worse by more than the tolerance, which is one of

- `within = 0.03`: in the unit of the column;
- `relative = 0.01`: a share of the committed number;
- `half_widths = 0.5`: a share of half the width of the committed 95% interval, so that it is scaled
  with the size of the study.

A rerun has the samples of the committed tables, unless it runs on a processor on which single
sampled tokens differ, or the sampling has changed. For a run with other samples, `other_samples`
replaces the amount, in the same unit. The digest of the samples is in neurons.json.

`worse` is "lower", "higher" or "either" (the default). With `only = "all"`, only rows with that key
are compared. Columns without a tolerance are not compared, nor are cells that are empty in both
folders.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import TypeAdapter, ValidationError

from harness.check.tolerance import Committed, Tolerance
from harness.experiments import EXPERIMENTS
from harness.stages.identify import NEURONS_FILE
from harness.tables.files import lacks_table, read_table
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
    expected: Committed
    found: float
    tolerance: Tolerance
    same_samples: bool

    @property
    def allowed(self) -> float:
        """The allowed change in the unit of the column."""
        return self.tolerance.allowed(self.expected, self.same_samples)

    @property
    def regressed(self) -> bool:
        """Whether the change exceeds the tolerance."""
        return self.tolerance.exceeded(self.expected, self.found, self.same_samples)


def compare(run: Path, against: Path) -> list[Difference]:
    """Return every compared number of the run's rows.

    Tables that hq did not have yet when a folder was written are not compared.

    Raises HQError if a folder lacks tables, if tolerances are malformed or need an interval that a
    column does not have, if models or studies differ, or if no row of the run is in the committed
    tables.
    """
    tables = _require_same_study(run, against)
    tolerances = _tolerances(against, tables)
    same_samples = have_same_samples(run, against)
    differences = [
        Difference(name, row, column, before, after, tolerance, same_samples)
        for name, (_, keys) in tables.items()
        if not (lacks_table(against, name) or lacks_table(run, name))
        for row, column, before, after, tolerance in _compared(
            name, list(keys), run, against, tolerances.get(name, {})
        )
    ]
    if not differences:
        raise HQError(f"{run} and {against} have no row in common: give results of the same study.")
    return differences


def have_same_samples(run: Path, against: Path) -> bool:
    """Return whether the neurons in both folders state the same digest of their samples."""
    digests = [_samples(folder / NEURONS_FILE) for folder in (run, against)]
    return digests[0] is not None and digests[0] == digests[1]


def _samples(path: Path) -> object:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["provenance"]["samples"]
    except (KeyError, TypeError, ValueError):  # neurons of another tool or an earlier version
        return None


def _compared(
    name: str, keys: list[str], run: Path, against: Path, columns: Mapping[str, Tolerance]
) -> Iterator[tuple[str, str, Committed, float, Tolerance]]:
    """Yield row, column, both numbers and tolerance of the cells of a table that are compared."""
    expected, found = read_table(against, name), read_table(run, name)
    for side, where in ((expected, against), (found, run)):
        missing = [c for c in [*keys, *columns] if c not in side.columns]
        if missing:
            raise HQError(f"{where / name}.csv has no column {missing[0]!r}: run the study again.")
    if expected.is_empty() or found.is_empty():
        return  # columns of a CSV without rows have no type for the join
    for column, tolerance in columns.items():
        if tolerance.half_widths is not None and f"{column}_low" not in expected.columns:
            raise HQError(
                f"{against / TOLERANCES_FILE}: {name}.{column} has no interval for half_widths: "
                "use within or relative."
            )
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
            if row[column] is None and row[f"{column}.found"] is None:
                continue
            before = _committed(row, against, name, column)
            after = _number(row[f"{column}.found"], run, name, column)
            yield " ".join(values), column, before, after, tolerance


def _committed(row: Mapping[str, object], folder: Path, table: str, column: str) -> Committed:
    """Return a committed number, with its interval if the table has one."""
    limits = [limit for limit in (f"{column}_low", f"{column}_high") if limit in row]
    return Committed(*(_number(row[c], folder, table, c) for c in (column, *limits)))


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
        what = first["msg"].removeprefix("Value error, ")
        raise HQError(f"{path}: {where}: {what}.") from error
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
    """Return the differences as a table, regressions first.

    `low` and `high` are the committed interval, and empty for columns without one.
    """
    rows = [
        {
            "table": d.table,
            "row": d.row,
            "column": d.column,
            "expected": d.expected.value,
            "low": d.expected.low,
            "high": d.expected.high,
            "found": d.found,
            "tolerance": d.allowed,
            "regressed": d.regressed,
        }
        for d in sorted(differences, key=lambda d: not d.regressed)
    ]
    return pl.DataFrame(rows, infer_schema_length=None)
