"""Result tables on disk: CSV for machines, Markdown for people, provenance beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from harness.tables.provenance import PROVENANCE_FILE
from harness.tables.schema import KINDS, Row
from hq.errors import HQError
from hq.stats.bootstrap import Estimate
from hq.storage.atomic import write_whole

TableRows = Mapping[str, Sequence[Row]]


def write_tables(folder: Path, tables: TableRows, provenance: Mapping[str, object]) -> None:
    """Writes NAME.csv for each table, all of them in tables.md, and provenance.json."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {provenance['study']}\n"]
    for name, rows in tables.items():
        kind = KINDS[str(provenance["kind"])][name][0]
        write_whole(folder / f"{name}.csv", _frame(kind, rows).write_csv())
        parts.append(f"## {name}\n\n{markdown(rows, kind)}\n\n{_legend(kind)}\n")
    write_whole(folder / "tables.md", "\n".join(parts))
    write_whole(folder / PROVENANCE_FILE, provenance_json(provenance))


def provenance_json(provenance: Mapping[str, object]) -> str:
    """The text of provenance.json."""
    return json.dumps(provenance, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_table(folder: Path, name: str) -> pl.DataFrame:
    """A table's CSV. Raises HQError when the folder has none, or when it cannot be read."""
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise HQError(f"{folder} has no {name}.csv: give the folder of a finished run.")
    try:
        return pl.read_csv(path, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise HQError(f"{path} cannot be read as CSV: {str(error).splitlines()[0]}.") from error


def markdown(rows: Sequence[Row], kind: type[Row] | None = None) -> str:
    """A Markdown table of rows of one kind, named where there may be none.

    Estimates are written as `value [low, high]`.
    """
    names = list((kind or type(rows[0])).model_fields)
    lines = [_line(names), _line(["---"] * len(names))]
    lines += [_line([_cell(getattr(row, name)) for name in names]) for row in rows]
    return "\n".join(lines)


def _frame(kind: type[Row], rows: Sequence[Row]) -> pl.DataFrame:
    flat = [_flat(row) for row in rows]
    columns = None if flat else [c for name in kind.model_fields for c in _columns(kind, name)]
    return pl.DataFrame(flat, schema=columns, infer_schema_length=None)


def _columns(kind: type[Row], name: str) -> list[str]:
    """A field's columns: three for an estimate."""
    estimate = kind.model_fields[name].annotation in (Estimate, Estimate | None)
    return [name, f"{name}_low", f"{name}_high"] if estimate else [name]


def _flat(row: Row) -> dict[str, Any]:
    """A row with each estimate as three columns, rounded to six significant digits."""
    flat: dict[str, Any] = {}
    for name in type(row).model_fields:
        value = getattr(row, name)
        parts = (value.value, value.low, value.high) if isinstance(value, Estimate) else None
        columns = _columns(type(row), name)
        flat |= dict(zip(columns, parts or [value] * len(columns), strict=True))
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in flat.items()}


def _cell(value: object) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _legend(kind: type[Row]) -> str:
    fields = kind.model_fields.items()
    return "\n".join(f"- `{name}`: {field.description}" for name, field in fields)
