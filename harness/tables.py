"""Result tables on disk: CSV for machines, Markdown for people, provenance beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from harness.provenance import PROVENANCE_FILE
from harness.schema import TABLES, Row
from hq.errors import HQError
from hq.stats import Estimate

Tables = Mapping[str, Sequence[Row]]


def write_tables(folder: Path, tables: Tables, provenance: Mapping[str, object]) -> None:
    """Writes NAME.csv for each table, all of them in tables.md, and provenance.json."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {provenance['study']}\n"]
    for name, rows in tables.items():
        _frame(rows).write_csv(folder / f"{name}.csv")
        parts.append(f"## {name}\n\n{markdown(rows)}\n\n{_legend(type(rows[0]))}\n")
    (folder / "tables.md").write_text("\n".join(parts))
    (folder / PROVENANCE_FILE).write_text(provenance_json(provenance))


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


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of rows of one kind; estimates as `value [low, high]`."""
    names = list(type(rows[0]).model_fields)
    lines = [_line(names), _line(["---"] * len(names))]
    lines += [_line([_cell(getattr(row, name)) for name in names]) for row in rows]
    return "\n".join(lines)


def _frame(rows: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame([_flat(row) for row in rows], infer_schema_length=None)


def _flat(row: Row) -> dict[str, Any]:
    """A row with each estimate as three columns, rounded to six significant digits."""
    flat: dict[str, Any] = {}
    for name in type(row).model_fields:
        value = getattr(row, name)
        if isinstance(value, Estimate):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            flat[name] = value
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in flat.items()}


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _legend(kind: type[Row]) -> str:
    fields = kind.model_fields.items()
    return "\n".join(f"- `{name}`: {field.description}" for name, field in fields)


TABLE_NAMES = tuple(TABLES)
