"""Tables of a run as tables of the page: cells with intervals, their origin, and their legend."""

from collections.abc import Mapping, Sequence

import polars as pl

from harness.report.page import Column, Grid
from harness.report.run import RunFolder
from harness.report.traced import cell_name, unmarked
from harness.tables.readme_cells import Cells, text_of

MOST_ROWS = 60
_EMPTY = "—"


def grid(
    run: RunFolder,
    table: str,
    title: str = "",
    columns: Mapping[str, str] | None = None,
    rows: pl.DataFrame | None = None,
    folded: bool = False,
) -> Grid:
    """Return a table of a run, with `columns` as {column: label}, or all of its columns."""
    frame = run.frame(table) if rows is None else rows
    described = run.columns(table)
    # Tables of an earlier version may lack a column.
    shown = {c: label for c, label in (columns or {c: c for c in described}).items() if c in frame}
    estimates, keys = run.estimates(table), [k for k in run.keys(table) if k in frame]
    kept = frame.head(MOST_ROWS)
    digits = {c: _digits(kept[c]) for c, t in kept.schema.items() if t.is_float()}
    texts, origins = [], []
    for row in kept.iter_rows(named=True):
        where = {key: row[key] for key in keys}
        texts.append([cell_text(row, c, c in estimates, digits.get(c)) for c in shown])
        origins.append(["" if c in keys else cell_name(table, c, **where) for c in shown])
    numeric = {c for c, t in frame.schema.items() if t.is_numeric()}
    more = frame.height - kept.height
    return Grid(
        title or table,
        [Column(label, described.get(c, ""), c not in numeric) for c, label in shown.items()],
        texts,
        origins,
        f"`{table}.csv`",
        folded,
        f"The first {kept.height} of {frame.height} rows; `{table}.csv` has all." if more else "",
    )


def _digits(values: pl.Series) -> int:
    """Return the decimals of a column."""
    finite = values.drop_nulls().drop_nans().abs()
    if not len(finite) or (finite == finite.round()).all():
        return 0
    largest = float(finite.max() or 0)  # type: ignore[arg-type]
    return 3 if largest < 10 else 2 if largest < 100 else 1


def cell_text(row: Cells, column: str, is_estimate: bool, digits: int | None = None) -> str:
    """Return a cell as text: an estimate with its interval, a missing value as a dash."""
    value = row[column]
    if not is_estimate:
        return value_text(value, digits)
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    if value is None or value != value:
        return _EMPTY
    digits = 3 if max(abs(value), abs(low or 0), abs(high or 0)) < 100 else 1
    if low is None or high is None:
        return text_of(float(value), digits)
    return (
        f"{text_of(float(value), digits)} "
        f"[{text_of(float(low), digits)}, {text_of(float(high), digits)}]"
    )


def value_text(value: object, digits: int | None = None) -> str:
    """Return a value with these decimals, or about four digits; a missing one as a dash."""
    if value is None or value != value or value == "":
        return _EMPTY
    if isinstance(value, float):
        size = abs(value)
        if size and (size < 5e-4 or size >= 1e6):
            return f"{value:.1e}".replace("-", "−")
        if digits is not None:
            return text_of(value, digits)
        digits = 0 if value == int(value) and size >= 1 else 3 if size < 10 else 1
        return text_of(value, digits)
    return text_of(value) if isinstance(value, int) else unmarked(str(value))


def of_frame(
    title: str, frame: pl.DataFrame, source: str, most: int = 200, folded: bool = True
) -> Grid:
    """Return data that are no table of a run, such as those of a figure, as a table."""
    kept = frame.head(most)
    digits = [_digits(kept[c]) if t.is_float() else None for c, t in kept.schema.items()]
    rows = [
        [value_text(v, d) for v, d in zip(row, digits, strict=True)] for row in kept.iter_rows()
    ]
    columns = [Column(c, "", not t.is_numeric()) for c, t in frame.schema.items()]
    more = frame.height - kept.height
    note = f"The first {kept.height} of {frame.height} rows." if more else ""
    return Grid(title, columns, rows, (), source, folded, note)


def legend(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """Return label and description of the columns that have one."""
    return [(column.label, column.description) for column in columns if column.description]
