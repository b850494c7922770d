"""Whether committed tables can show a loss of the margin, before anything is run against them.

A gate compares a run with committed tables of the same study: the same samples in the same folds.
If nothing changed, the two numbers differ by rounding only, so the critical value is the tolerance
a, and not a multiple of the standard error. If something changed the scores, the difference of the
two numbers estimates the true loss with a standard error se, and a true loss of

    a + z·se,  z = 0.84, the 80% quantile of the normal distribution,

exceeds the tolerance with 80% power: the smallest change that the gate shows. The column
`detectable` of detect is larger, (t_{0.975} + t_{0.8})·se: it is for a change from FP16, which is
expected to be large and tested against 0.

se is not known before the run. It is bounded by

- the standard error of the committed change of this precision from the reference, which compares
  scores that differ by all that quantization changes;
- for the reference itself, whose change is 0: the largest of these of the other precisions, or the
  number's own standard error, whichever is smaller. Var(x − y) = 2σ²(1 − ρ) ≤ σ² if two runs
  correlate with ρ ≥ ½.

A half-width of a 95% interval is t_{0.975}·se, so z·se ≤ 0.43 half-widths.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

from harness.check.limits import TOLERANCES_FILE, Gate, Limits
from harness.check.regress import STUDY, committed_number
from harness.check.tolerance import Tolerance
from harness.tables.files import read_table
from hq.errors import HQError

POWER = 0.8
_PER_HALF_WIDTH = NormalDist().inv_cdf(POWER) / NormalDist().inv_cdf(0.975)

Values = Mapping[str, object]


class Design(NamedTuple):
    """What committed tables can show at one precision."""

    column: str  # TABLE.COLUMN
    smallest: float  # the smallest change that is shown with 80% power
    margin: float
    n: int | None  # samples
    units: int | None
    growth: float | None  # how many times as many would do; None if no number would

    @property
    def decides(self) -> bool:
        """Whether a loss of the margin is shown with 80% power."""
        return self.smallest < self.margin

    @property
    def n_needed(self) -> int | None:
        """The number of samples that would do, rounded up; None if these do, or if no number would.

        A standard error is proportional to 1/√n, so it is n·(smallest/margin)².
        """
        return self._needed(self.n)

    @property
    def units_needed(self) -> int | None:
        """The same for units."""
        return self._needed(self.units)

    def _needed(self, count: int | None) -> int | None:
        if self.decides or count is None or self.growth is None:
            return None
        return grown(count, self.growth)

    @property
    def sentence(self) -> str:
        """What the tables cannot show, and what would do."""
        have = _size(self.n, self.units)
        shown = f"the smallest change of {self.column} that it shows with 80% power is "
        return (
            f"{shown}{self.smallest:.3g}{f' at {have}' if have else ''}, and the margin is "
            f"{self.margin:g}: {enough(_size(self.n_needed, self.units_needed))}"
        )


def designs(
    against: Path,
    keys: Mapping[str, list[str]],
    limits: Limits,
    asked: Collection[str],
    remade: Collection[str] = (),
) -> dict[str, Design]:
    """Return what the committed tables can show at each asked precision; {} without [gate].

    Of several rows of a precision, that with the largest smallest change. `remade` are precisions
    with checkpoints of another making. Raises HQError if the
    table lacks a column that [gate] names.
    """
    gate = limits.gate
    if gate is None or gate.table not in keys:
        return {}
    column = gate.column.split(".")[1]
    change = None if gate.change is None else gate.change.split(".")[1]
    tolerance = limits.tolerances[gate.table][column]
    frame = read_table(against, gate.table)
    for name in filter(None, (column, change)):
        if not {name, f"{name}_low", f"{name}_high"} <= set(frame.columns):
            raise HQError(
                f"{against / TOLERANCES_FILE}: [gate] needs an interval of {gate.table}.{name}, "
                "which is not in the table: name another column."
            )
    rows = [
        row
        for row in frame.iter_rows(named=True)
        if row[column] is not None and tolerance.covers(row[key] for key in keys[gate.table])
    ]
    changes = [_half_width(row, change) for row in rows]
    found: dict[str, Design] = {}
    for row, own_change in zip(rows, changes, strict=True):
        group = str(row["precision"]) if "precision" in keys[gate.table] else STUDY
        if group in asked or group == STUDY:
            noise = own_change or min([_half_width(row, column), *filter(None, [max(changes)])])
            committed = committed_number(row, against, gate.table, column)
            allowed = tolerance.allowed(committed, limits.other(group, remade=remade))
            design = _design(row, allowed, gate, tolerance, noise)
            found[group] = max(found.get(group, design), design, key=lambda d: d.smallest)
    return found


def _design(row: Values, allowed: float, gate: Gate, tolerance: Tolerance, noise: float) -> Design:
    margin = gate.margin
    spread = _PER_HALF_WIDTH * noise
    growth = None
    if tolerance.half_widths is not None:
        growth = ((allowed + spread) / margin) ** 2
    elif allowed < margin:  # the tolerance does not shrink
        growth = (spread / (margin - allowed)) ** 2
    n, units = (None if row.get(k) is None else int(str(row[k])) for k in ("n", "units"))
    return Design(gate.column, allowed + spread, margin, n, units, growth)


def _half_width(row: Values, column: str | None) -> float:
    if column is None or row[column] is None:
        return 0.0
    return (float(str(row[f"{column}_high"])) - float(str(row[f"{column}_low"]))) / 2


def grown(count: int, growth: float) -> int:
    """Return a count times a growth, rounded up, and more than the count."""
    return max(count + 1, math.ceil(count * growth))


def enough(size: str) -> str:
    """Say which size would do; empty: none would."""
    if size:
        return f"{size} would do."
    return "the tolerance alone is too wide, so lower it."


def _size(n: int | None, units: int | None) -> str:
    parts = [f"{n:,} samples"] if n is not None else []
    return " in ".join([*parts, *([f"{units:,} units"] if units is not None else [])])
