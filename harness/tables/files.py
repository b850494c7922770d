"""Result tables on disk: CSV for programs, Markdown for people, one results.json, provenance.

Rows of two runs are merged in the CSV files, from which Markdown and JSON are rendered.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import polars as pl

from harness.tables.provenance import PROVENANCE_FILE, provenance_json
from harness.tables.schema import EXPERT, Row, Tables
from hq.errors import HQError
from hq.storage.atomic import write_whole

RESULTS_FILE = "results.json"
MARKDOWN_FILE = "tables.md"
SCHEMA_VERSION = 1
Frames = Mapping[str, pl.DataFrame]


def write_tables(
    folder: Path,
    tables: Tables,
    rows: Mapping[str, Sequence[Row]],
    provenance: Mapping[str, Any],
) -> None:
    """Write NAME.csv for each table, tables.md, results.json and provenance.json."""
    write_frames(folder, tables, {n: frame_of(tables[n][0], rows[n]) for n in tables}, provenance)


def write_frames(
    folder: Path, tables: Tables, frames: Frames, provenance: Mapping[str, Any]
) -> None:
    """Write the same files, given the columns of the CSV files."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = {name: _without_empty_experts(frame) for name, frame in frames.items()}
    for name, frame in frames.items():
        write_whole(folder / f"{name}.csv", frame.write_csv())
    title = f"# {provenance['study']}\n"
    parts = [section(name, tables[name][0], frame) for name, frame in frames.items()]
    write_whole(folder / MARKDOWN_FILE, "\n".join([title, *parts]))
    write_whole(folder / RESULTS_FILE, _results(tables, frames, provenance))
    write_whole(folder / PROVENANCE_FILE, provenance_json(provenance))


def _without_empty_experts(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame without the column `expert` if no neuron of it has one."""
    has_none = EXPERT in frame.columns and frame[EXPERT].null_count() == frame.height
    return frame.drop(EXPERT) if has_none else frame


def neuron_names(frame: pl.DataFrame) -> pl.Expr:
    """Return the expression that names the neuron of each row: layer:index or layer:expert:index.

    Neurons of dense layers have no expert in their name.
    """
    parts = [name for name in ("layer", EXPERT, "index") if name in frame.columns]
    return pl.concat_str(parts, separator=":", ignore_nulls=True)


def frame_of(kind: type[Row], rows: Sequence[Row]) -> pl.DataFrame:
    """Return the columns of a CSV file: three per estimate, with six significant digits."""
    return pl.DataFrame([_flat(row) for row in rows], schema=_schema(kind), orient="row")


def read_table(folder: Path, name: str, kind: type[Row] | None = None) -> pl.DataFrame:
    """Read the CSV file of a table.

    With `kind`, the columns are those of this row type; columns that the file lacks are empty.
    Raises HQError if the folder has no such table, or if it cannot be read.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise HQError(f"{folder} has no {name}.csv: give the folder of a finished run.")
    schema = {} if kind is None else _schema(kind)
    try:
        frame = pl.read_csv(path, infer_schema_length=None, schema_overrides=schema)
    except pl.exceptions.PolarsError as error:
        raise HQError(f"{path} cannot be read as CSV: {str(error).splitlines()[0]}.") from error
    if kind is None:
        return frame
    missing = [pl.lit(None, dtype=t).alias(c) for c, t in schema.items() if c not in frame.columns]
    return frame.with_columns(missing).select(list(schema))


def section(name: str, kind: type[Row], frame: pl.DataFrame) -> str:
    """Return a table as Markdown, with its name and a description of each column."""
    return f"## {name}\n\n{markdown(kind, frame)}\n\n{_legend(kind, frame)}\n"


def markdown(kind: type[Row], frame: pl.DataFrame) -> str:
    """Return a Markdown table, with estimates as `value [low, high]` and missing cells as —."""
    names = _names(kind, frame)
    lines = [_line(names), _line(["---"] * len(names))]
    for row in frame.iter_rows(named=True):
        lines.append(_line([_cell([row[c] for c in _columns(kind, name)]) for name in names]))
    return "\n".join(lines)


def _results(tables: Tables, frames: Frames, provenance: Mapping[str, Any]) -> str:
    """Return the text of results.json: every table with descriptions of its columns."""
    content = {
        "schema": SCHEMA_VERSION,
        "kind": provenance["kind"],
        "study": provenance["study"],
        "fingerprint": provenance["fingerprint"],
        "tables": {
            name: {
                "keys": [key for key in tables[name][1] if key in frame.columns],
                "columns": {
                    field: tables[name][0].model_fields[field].description
                    for field in _names(tables[name][0], frame)
                },
                "rows": [_without_nan(row) for row in frame.iter_rows(named=True)],
            }
            for name, frame in frames.items()
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _schema(kind: type[Row]) -> dict[str, pl.DataType]:
    return {c: _type(kind, name) for name in kind.model_fields for c in _columns(kind, name)}


def _type(kind: type[Row], name: str) -> pl.DataType:
    annotation = kind.model_fields[name].annotation
    options = {annotation, *get_args(annotation)}
    if str in options:
        return pl.String()
    return pl.Int64() if int in options and float not in options else pl.Float64()


def _columns(kind: type[Row], name: str) -> list[str]:
    """Return the columns of a field: three for an estimate."""
    from hq.stats.intervals import Estimate  # it imports SciPy, and reading CSV needs none

    estimate = kind.model_fields[name].annotation in (Estimate, Estimate | None)
    return [name, f"{name}_low", f"{name}_high"] if estimate else [name]


def _flat(row: Row) -> list[Any]:
    """Return the cells of a row: three per estimate, with six significant digits."""
    from hq.stats.intervals import Estimate

    cells: list[Any] = []
    for name in type(row).model_fields:
        value = getattr(row, name)
        parts = (value.value, value.low, value.high) if isinstance(value, Estimate) else None
        cells += parts or [value] * len(_columns(type(row), name))
    return [float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in cells]


def _cell(values: Sequence[object]) -> str:
    if any(value is None for value in values):
        return "—"
    if len(values) == 3:
        value, low, high = values
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"{values[0]:.4g}" if isinstance(values[0], float) else str(values[0])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _legend(kind: type[Row], frame: pl.DataFrame) -> str:
    fields = kind.model_fields
    return "\n".join(f"- `{name}`: {fields[name].description}" for name in _names(kind, frame))


def _names(kind: type[Row], frame: pl.DataFrame) -> list[str]:
    """Return the names of a table's fields, without `expert` if the table has no such column."""
    return [name for name in kind.model_fields if name != EXPERT or EXPERT in frame.columns]
