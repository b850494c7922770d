"""The file tolerances.toml: the tolerance of each column, and what a gate must rule out.

    by_processor = ["int8"]           # precisions whose numbers depend on the processor

    [gate]
    margin = 0.02                     # a loss of this size must not pass
    column = "detection.auroc"        # of this number
    change = "detection.auroc_change" # its paired change from the reference, for the noise

    [gate.repair]                     # what is proposed if only the threshold is stale
    table = "alarms"
    only = "all"
    threshold = "threshold_recalibrated"
    rates = {"recalibrated with labels" = "false_alarms_recalibrated"}

    [detection]
    reason = "Rounding hardly changes the order of the scores."   # default of the columns below
    auroc = {half_widths = 0.1, other_samples = 0.5, worse = "lower"}

A text-valued key of a table, such as `reason`, `means` or `rows`, is the default of its columns.
Without [gate], no verdict is "inconclusive". Numbers of the precisions `by_processor` differ
between processors more than by rounding, because their kernels round activations to 8 bits, so they
are compared as if the samples were others, with `other_samples`. A checkpoint that calibration made
again, with another outcome (provenance.json has the digest), is compared with `other_making`.
"""

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.check.tolerance import Other, Tolerance
from hq.errors import HQError

TOLERANCES_FILE = "tolerances.toml"

ColumnName = Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
Margin = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]


class RepairColumns(BaseModel):
    """The columns of a run from which a repaired threshold is proposed.

    `rates` maps how a threshold is repaired to the column of its false-alarm rate. `threshold` is
    the column of the recalibrated threshold. With `only`, only rows with that key are used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    threshold: str
    rates: dict[str, str]
    only: str | None = None


class Gate(BaseModel):
    """The loss that a passing run must rule out, and the number of which it is a loss.

    `column` is TABLE.COLUMN with an interval and a tolerance; `change` is a column of the same
    table with the paired change of this number from the reference precision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: Margin
    column: ColumnName
    change: ColumnName | None = None
    repair: RepairColumns | None = None

    @property
    def table(self) -> str:
        """The table of the number."""
        return self.column.split(".")[0]


class Limits(BaseModel):
    """The content of tolerances.toml."""

    model_config = ConfigDict(frozen=True)

    gate: Gate | None = None
    by_processor: tuple[str, ...] = ()
    tolerances: dict[str, dict[str, Tolerance]]

    def other(
        self, group: str, *, same_samples: bool = True, remade: Collection[str] = ()
    ) -> tuple[Other, ...]:
        """Return what differs between two runs at a precision, beside rounding.

        Precisions of `by_processor` count as having other samples; `remade` are those whose
        checkpoints have been calibrated again, with another outcome.
        """
        samples: tuple[Other, ...] = ("samples",)
        making: tuple[Other, ...] = ("making",)
        return (
            *(samples if not same_samples or group in self.by_processor else ()),
            *(making if group in remade else ()),
        )


def read_limits(folder: Path, tables: Collection[str] | None = None) -> Limits:
    """Read the tolerances beside committed tables.

    Raises HQError if the file is missing or malformed, or names a table that is not in `tables`, if
    they are given.
    """
    path = folder / TOLERANCES_FILE
    if not path.is_file():
        raise HQError(f"{folder} has no {TOLERANCES_FILE}: `hq check --accept` writes one.")
    try:
        limits = parse_limits(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HQError(f"{path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])).removeprefix("tolerances.")
        what = first["msg"].removeprefix("Value error, ")
        raise HQError(f"{path}: {where}: {what}.") from error
    known = limits.tolerances if tables is None else tables
    unknown = [name for name in limits.tolerances if name not in known]
    if unknown:
        raise HQError(f"{path} has an unknown table {unknown[0]!r}: known are {', '.join(known)}.")
    _require_gated_column(limits, path)
    return limits


def parse_limits(text: str) -> Limits:
    """Return the content of tolerances.toml. Raises as `tomllib` and pydantic."""
    parsed = tomllib.loads(text)
    whole = {key: parsed.pop(key) for key in ("gate", "by_processor") if key in parsed}
    tolerances = {name: _with_defaults(table) for name, table in parsed.items()}
    return Limits.model_validate(whole | {"tolerances": tolerances})


def _with_defaults(table: Any) -> Any:
    """Return the columns of a table, each with the defaults of the table."""
    if not isinstance(table, dict):
        return table  # pydantic says what is wrong
    defaults = {key: value for key, value in table.items() if isinstance(value, str)}
    columns = {key: value for key, value in table.items() if key not in defaults}
    return {c: defaults | v if isinstance(v, dict) else v for c, v in columns.items()}


def _require_gated_column(limits: Limits, path: Path) -> None:
    """Raises HQError unless the gated column has a tolerance, in a table with the change."""
    if limits.gate is None:
        return
    table, column = limits.gate.column.split(".")
    if column not in limits.tolerances.get(table, {}):
        raise HQError(
            f"{path}: gate.column: {limits.gate.column} has no tolerance: give it one, or name "
            "another column."
        )
    if limits.gate.change is not None and limits.gate.change.split(".")[0] != table:
        raise HQError(f"{path}: gate.change: {limits.gate.change} is not a column of {table}.")
