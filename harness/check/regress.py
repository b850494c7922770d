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
replaces the amount, in the same unit. The digest of the samples is in neurons.json. A checkpoint
that was calibrated again (GPTQ, AWQ) has other weights on another processor, where rounding grows
through the layers; its rows have the tolerance `other_making`. provenance.json has its digest.

`worse` is "lower", "higher" or "either" (the default). With `only = "all"`, only rows with that key
are compared. Columns without a tolerance are not compared, nor are cells that are empty in both
folders. A committed number that the run lacks is an error, not a pass. `harness.check.limits` has
the whole format, and `harness.check.gate` the verdicts.

Only files are read, and no module that imports torch.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import polars as pl

from harness.check.comparability import facts_differ, remade_precisions
from harness.check.limits import TOLERANCES_FILE, Limits, read_limits
from harness.check.tolerance import Committed, Other, Tolerance
from harness.tables.contents import read_contents, stated_samples
from harness.tables.files import read_table
from harness.tables.provenance import precisions, read_provenance
from hq.errors import HQError

STUDY = "study"
"""Group of the rows that belong to no precision."""

_PRECISION = "precision"

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Difference:
    """One compared number."""

    table: str
    row: str
    column: str
    expected: Committed
    found: float
    tolerance: Tolerance
    other: tuple[Other, ...] = ()
    group: str = STUDY  # its precision, if the table has rows of precisions

    @property
    def allowed(self) -> float:
        """The allowed change in the unit of the column."""
        return self.tolerance.allowed(self.expected, self.other)

    @property
    def loss(self) -> float:
        """The change in the bad direction."""
        return self.tolerance.loss(self.expected, self.found)

    @property
    def used(self) -> float:
        """The loss as a share of the allowed one; infinite if that is 0 or the number is NaN."""
        if self.loss <= 0:
            return 0.0
        return self.loss / self.allowed if self.allowed and self.loss == self.loss else math.inf

    @property
    def regressed(self) -> bool:
        """Whether the change exceeds the tolerance."""
        return self.tolerance.exceeded(self.expected, self.found, self.other)

    @property
    def name(self) -> str:
        """Table and column."""
        return f"{self.table}.{self.column}"


@dataclass(frozen=True, slots=True)
class Uncompared:
    """A committed number that could not be compared."""

    table: str
    row: str
    column: str
    why: str
    group: str = STUDY

    @property
    def name(self) -> str:
        """Table and column."""
        return f"{self.table}.{self.column}"


class Compared(NamedTuple):
    """The compared numbers of some precisions, and those that should have been compared."""

    differences: list[Difference]
    uncompared: list[Uncompared]
    limits: Limits
    same_samples: bool
    remade: frozenset[str]  # precisions with checkpoints of another making
    committed: frozenset[str]  # precisions (or STUDY) of which a committed number has a tolerance


def compare(run: Path, against: Path) -> list[Difference]:
    """Return every compared number of the run's rows.

    Raises HQError as `compare_tables`, if models or studies differ, or if no row of the run is in
    the committed tables.
    """
    new = read_provenance(run)
    why = facts_differ(str(run), new, against, read_provenance(against))
    if why is not None:
        raise HQError(why)
    differences = compare_tables(run, against, precisions(new)).differences
    if not differences:
        raise HQError(f"{run} and {against} have no row in common: give results of the same study.")
    return differences


def compare_tables(run: Path, against: Path, asked: Collection[str]) -> Compared:
    """Compare the numbers of the asked precisions, and those that belong to no precision.

    Tables that hq did not have yet when the committed folder was written are not compared.

    Raises HQError if a folder lacks tables, or if tolerances are malformed or need an interval that
    a column does not have.
    """
    contents, new = read_contents(against), read_contents(run)
    limits = read_limits(against, list(dict.fromkeys([*contents.keys, *new.keys])))
    same_samples = have_same_samples(run, against)
    remade = remade_precisions(read_provenance(run), read_provenance(against))
    other = partial(limits.other, same_samples=same_samples, remade=remade)
    found: list[Difference | Uncompared] = []
    committed: set[str] = set()
    for name, keys in contents.keys.items():
        columns = limits.tolerances.get(name, {})
        if columns and name not in new.keys:
            found.append(Uncompared(name, "", "", f"{run} was written before hq had this table"))
        elif columns:
            sides = _Sides(name, keys, run, against, other)
            found += sides.compared(columns, asked, committed)
    return Compared(
        [d for d in found if isinstance(d, Difference)],
        [d for d in found if isinstance(d, Uncompared)],
        limits,
        same_samples,
        remade,
        frozenset(committed),
    )


def have_same_samples(run: Path, against: Path) -> bool:
    """Return whether the neurons in both folders state the same digest of their samples."""
    digests = [stated_samples(folder) for folder in (run, against)]
    return digests[0] is not None and digests[0] == digests[1]


@dataclass(frozen=True)
class _Sides:
    """A table in both folders."""

    name: str
    keys: list[str]
    run: Path
    against: Path
    other: Callable[[str], tuple[Other, ...]]  # of a precision

    def compared(
        self,
        columns: Mapping[str, Tolerance],
        asked: Collection[str],
        committed: set[str],
    ) -> Iterator[Difference | Uncompared]:
        """Yield the cells of the committed table that have a tolerance; add their precisions."""
        expected, found = (read_table(folder, self.name) for folder in (self.against, self.run))
        self._require(columns, expected, found)
        rows = {self._key(row): row for row in found.iter_rows(named=True)}
        for before in expected.iter_rows(named=True):
            group = str(before.get(_PRECISION, STUDY)) if _PRECISION in self.keys else STUDY
            if group != STUDY and group not in asked:
                continue
            key = self._key(before)
            row = " ".join(map(str, key))
            for column, tolerance in columns.items():
                if tolerance.covers(key):
                    committed.add(group)
                    after = rows.get(key)
                    yield from self._cell(row, group, column, tolerance, before, after)

    def _key(self, row: Values) -> tuple[object, ...]:
        return tuple(row[key] for key in self.keys)

    def _cell(
        self,
        row: str,
        group: str,
        column: str,
        tolerance: Tolerance,
        before: Values,
        after: Values | None,
    ) -> Iterator[Difference | Uncompared]:
        if after is None:
            if tolerance.rows == "fixed" and before[column] is not None:
                yield self._uncompared(row, group, column, f"{self.run} has no such row")
            return
        cells = before[column], after[column]
        if cells == (None, None):
            return
        for cell, folder in zip(cells, (self.against, self.run), strict=True):
            if cell is None:
                yield self._uncompared(row, group, column, f"it is empty in {folder}")
                return
        yield Difference(
            self.name,
            row,
            column,
            committed_number(before, self.against, self.name, column),
            _number(cells[1], self.run, self.name, column),
            tolerance,
            self.other(group),
            group,
        )

    def _uncompared(self, row: str, group: str, column: str, why: str) -> Uncompared:
        return Uncompared(self.name, row, column, why, group)

    def _require(
        self, columns: Mapping[str, Tolerance], expected: pl.DataFrame, found: pl.DataFrame
    ) -> None:
        """Raises HQError if a side lacks a column, or a tolerance cannot be applied."""
        for side, where in ((expected, self.against), (found, self.run)):
            missing = [c for c in [*self.keys, *columns] if c not in side.columns]
            if missing:
                raise HQError(
                    f"{where / self.name}.csv has no column {missing[0]!r}: run the study again."
                )
        if expected.is_empty() or found.is_empty():
            return
        for column, tolerance in columns.items():
            place = f"{self.against / TOLERANCES_FILE}: {self.name}.{column}"
            if tolerance.half_widths is not None and f"{column}_low" not in expected.columns:
                raise HQError(f"{place} has no interval for half_widths: use within or relative.")
            rows = expected.select(self.keys).iter_rows()
            if tolerance.only is not None and not any(map(tolerance.covers, rows)):
                raise HQError(
                    f"{place} is for {tolerance.only!r} only, which no row has: correct it."
                )


def committed_number(row: Mapping[str, object], folder: Path, table: str, column: str) -> Committed:
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
            "means": d.tolerance.means,
            "reason": d.tolerance.reason,
        }
        for d in sorted(differences, key=lambda d: not d.regressed)
    ]
    return pl.DataFrame(rows, infer_schema_length=None)
