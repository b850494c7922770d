"""Cells of committed tables as text, for the documents that `harness.tables.readme` renders.

Every number of these documents is a cell that is named by table, row and column, or is computed
from such cells. A name that the table does not have is an error.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from harness.tables.files import read_table
from harness.tables.provenance import PROVENANCE_FILE
from hq.errors import HQError

Cells = dict[str, Any]
"""Values by column: a row of a CSV file, or what names one."""


class CsvTables:
    """The CSV files of a folder, and what its provenance.json records.

    In all methods, keyword arguments name rows by the values of other columns, as in
    `number("detection", "auroc", precision="nf4")`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._frame = cache(lambda table: read_table(folder, table))

    def has(self, table: str) -> bool:
        """Return whether there is this table, which an earlier hq may not have written."""
        return self._file(table).is_file()

    def rows(self, table: str, **where: object) -> list[Cells]:
        """Return the rows with these values, in the order of the file."""
        frame: pl.DataFrame = self._frame(table)
        for column in where:
            self._require_column(table, column)
        return [row for row in frame.iter_rows(named=True) if where.items() <= row.items()]

    def cell(self, table: str, column: str, **where: object) -> Any:
        """Return the value of a cell.

        Raises HQError unless there is one such row, and its cell is not empty.
        """
        self._require_column(table, column)
        rows = self.rows(table, **where)
        at = ", ".join(f"{key} = {value}" for key, value in where.items()) or "no condition"
        if len(rows) != 1:
            raise HQError(f"{self._file(table)} has {len(rows)} rows with {at}: name one row.")
        value = rows[0][column]
        if value is None:
            raise HQError(f"{self._file(table)} has an empty cell {column} in the row with {at}.")
        return value

    def number(
        self, table: str, column: str, digits: int = 3, signed: bool = False, **where: object
    ) -> str:
        """Return a cell with this number of decimals; an integer has none, text is unchanged."""
        return text_of(self.cell(table, column, **where), digits, signed)

    def estimate(
        self, table: str, column: str, digits: int = 3, signed: bool = False, **where: object
    ) -> str:
        """Return a cell with its 95% interval: `0.743 [0.683, 0.823]`."""
        value = self.number(table, column, digits, signed, **where)
        return f"{value} {self.interval(table, column, digits, signed, **where)}"

    def interval(
        self, table: str, column: str, digits: int = 3, signed: bool = False, **where: object
    ) -> str:
        """Return the 95% interval of a cell: `[0.683, 0.823]`."""
        low, high = (
            self.number(table, f"{column}_{end}", digits, signed, **where)
            for end in ("low", "high")
        )
        return f"[{low}, {high}]"

    def lowest(self, table: str, column: str, **where: object) -> float:
        """Return the smallest value of a column in the rows with these values."""
        return min(self._values(table, column, **where))

    def highest(self, table: str, column: str, **where: object) -> float:
        """Return the largest value of a column in the rows with these values."""
        return max(self._values(table, column, **where))

    def span(
        self, table: str, column: str, digits: int = 2, signed: bool = False, **where: object
    ) -> str:
        """Return the smallest and the largest value of a column: `0.72 to 0.83`."""
        values = self._values(table, column, **where)
        return " to ".join(text_of(value, digits, signed) for value in (min(values), max(values)))

    def recorded(self, *keys: str) -> str:
        """Return a number or text of provenance.json, named by the keys on the way to it."""
        path = self._folder / PROVENANCE_FILE
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise HQError(f"{path} does not record {'.'.join(keys)}.")
            value = value[key]
        return text_of(value)

    def _values(self, table: str, column: str, **where: object) -> list[float]:
        self._require_column(table, column)
        values = [row[column] for row in self.rows(table, **where) if row[column] is not None]
        if not values:
            raise HQError(f"{self._file(table)} has no value of {column} in these rows: {where}.")
        return values

    def _require_column(self, table: str, column: str) -> None:
        frame: pl.DataFrame = self._frame(table)
        if column not in frame.columns:
            raise HQError(f"{self._file(table)} has no column {column}.")

    def _file(self, table: str) -> Path:
        return self._folder / f"{table}.csv"


def text_of(value: Any, digits: int = 3, signed: bool = False) -> str:
    """Return a value as text: decimals, thousands with commas, and a minus sign (U+2212).

    A rounded zero has no minus sign.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise HQError(f"{value} is not a finite number.")
    text = f"{value:+,d}" if isinstance(value, int) else f"{value:+,.{digits}f}"
    sign, size = text[0], text[1:]
    if sign == "-" and size.strip("0.,"):
        return f"−{size}"
    return f"+{size}" if signed else size


def listed(items: Sequence[str], none: str = "none") -> str:
    """Return `a`, `a and b`, or `a, b and c`; `none` without items."""
    if not items:
        return none
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def code(names: Iterable[str]) -> list[str]:
    """Return the names as Markdown code."""
    return [f"`{name}`" for name in names]


def at_precisions(selected: Sequence[str], every: Sequence[str]) -> str:
    """Return at which of all precisions something holds, in words."""
    if not selected:
        return "at no precision"
    others = [name for name in every if name not in selected]
    if not others:
        return "at every precision" if len(every) > 1 else f"at {listed(code(every))}"
    if len(others) < len(selected) and len(others) <= 3:
        return f"at every precision except {listed(code(others))}"
    return f"at {listed(code(selected))}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
