"""The largest change of a compared number that is no regression."""

from collections.abc import Collection, Iterable
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Amount = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Meaning = Literal["degraded", "threshold", "incomparable"]
Other = Literal["samples", "making"]
"""What may differ between two runs of a study: the samples, or a checkpoint made by calibration."""


class Committed(NamedTuple):
    """A committed number, with the limits of its 95% interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class Tolerance(BaseModel):
    """The allowed change of a column, its bad direction, and the compared rows.

    The change is one of: `within`, in the unit of the column; `relative`, a share of the committed
    number; `half_widths`, a share of half the width of its committed 95% interval. If the run has
    other samples than the committed tables, `other_samples` replaces this amount, in the same unit,
    if it is larger; so does `other_making` if the checkpoint was calibrated again with another
    outcome. With `only`, only rows with this value among their keys are compared.

    `means` is what a larger change says: the model or its monitor is `degraded`, the frozen
    `threshold` has to be set again, or the two runs are `incomparable`. `reason` explains the
    tolerance. A committed row that the run lacks is an error if `rows` is "fixed"; with "vary",
    such as for rows of single neurons, only rows of both folders are compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    within: Amount | None = None
    relative: Amount | None = None
    half_widths: Amount | None = None
    other_samples: Amount | None = None
    other_making: Amount | None = None
    worse: Literal["lower", "higher", "either"] = "either"
    only: str | None = None
    means: Meaning = "degraded"
    reason: str = ""
    rows: Literal["fixed", "vary"] = "fixed"

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if [self.within, self.relative, self.half_widths].count(None) != 2:
            raise ValueError("give exactly one of within, relative and half_widths")
        return self

    def __str__(self) -> str:
        names = ("within", "relative", "half_widths")
        ((kind, amount),) = ((n, a) for n in names if (a := getattr(self, n)) is not None)
        kind = {"within": "absolute", "relative": "relative", "half_widths": "half-widths"}[kind]
        return f"{amount:g} {kind}"

    def allowed(self, expected: Committed, other: Collection[Other] = ()) -> float:
        """Return the allowed change in the unit of the column, for a run with these others."""
        (amount,) = (a for a in (self.within, self.relative, self.half_widths) if a is not None)
        others = {"samples": self.other_samples, "making": self.other_making}
        amount = max([amount, *(a for name in other if (a := others[name]) is not None)])
        if self.within is not None:
            return amount
        if self.relative is not None:
            return amount * abs(expected.value)
        if expected.low is None or expected.high is None:
            raise ValueError(f"half_widths needs an interval, and {expected} has none")
        return amount * (expected.high - expected.low) / 2

    def exceeded(self, expected: Committed, found: float, other: Collection[Other] = ()) -> bool:
        """Return whether the change is a regression."""
        allowed = self.allowed(expected, other)
        return not self.loss(expected, found) <= allowed  # NaN regresses

    def loss(self, expected: Committed, found: float) -> float:
        """Return the change in the bad direction, in the unit of the column."""
        change = found - expected.value
        return {"lower": -change, "higher": change, "either": abs(change)}[self.worse]

    def covers(self, keys: Iterable[object]) -> bool:
        """Return whether the row with these keys is compared."""
        return self.only is None or self.only in map(str, keys)
