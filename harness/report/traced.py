"""Numbers in generated text that name the cell of the CSV file which they come from.

A traced number is text with its cell between characters of Unicode's private use area, so that the
functions which make sentences of a run's tables need not know of it. HTML shows the cell as a
title; Markdown drops it.
"""

import re
from collections.abc import Callable

from harness.tables.readme_cells import CsvTables

_BEGIN, _THEN, _END = "\ue000", "\ue001", "\ue002"
_TRACED = re.compile(f"{_BEGIN}([^{_THEN}]*){_THEN}([^{_END}]*){_END}")
_MARKS = re.compile(f"[{_BEGIN}{_THEN}{_END}]")


def traced(text: str, cell: str) -> str:
    """Return a number as text that carries the name of its cell."""
    return f"{_BEGIN}{cell}{_THEN}{text}{_END}"


def replace_traced(text: str, write: Callable[[str, str], str]) -> str:
    """Replace each traced number by what `write` makes of its cell and its text."""
    return _TRACED.sub(lambda match: write(match[1], match[2]), text)


def plain(text: str) -> str:
    """Return a text without the cells of its numbers."""
    return replace_traced(text, lambda _, number: number)


def unmarked(text: str) -> str:
    """Return text of a user without the characters that mark traced numbers."""
    return _MARKS.sub("", text)


def cell_name(table: str, column: str, **where: object) -> str:
    """Return the name of a cell: `detection.csv: nf4, auroc`."""
    return f"{table}.csv: {', '.join([*map(str, where.values()), column])}"


class TracedTables(CsvTables):
    """The CSV files of a run, whose numbers are traced."""

    def number(
        self, table: str, column: str, digits: int = 3, signed: bool = False, **where: object
    ) -> str:
        """Return a cell with this number of decimals, traced."""
        text = super().number(table, column, digits, signed, **where)
        return traced(text, cell_name(table, column, **where))

    def estimate(
        self, table: str, column: str, digits: int = 3, signed: bool = False, **where: object
    ) -> str:
        """Return a cell with its 95% interval, traced."""
        value = super().number(table, column, digits, signed, **where)
        interval = plain(super().interval(table, column, digits, signed, **where))
        return traced(f"{value} {interval}", cell_name(table, column, **where))

    def interval(
        self, table: str, column: str, digits: int = 3, signed: bool = False, **where: object
    ) -> str:
        """Return the 95% interval of a cell, traced."""
        text = plain(super().interval(table, column, digits, signed, **where))
        return traced(text, cell_name(table, f"{column}_low/_high", **where))

    def count(self, table: str, column: str, **where: object) -> str:
        """Return a whole number or a text of the first row with these values, traced."""
        rows = self.rows(table, **where)
        value = rows[0][column] if rows else None
        text = "—" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
        return traced(text, cell_name(table, column, **where))
