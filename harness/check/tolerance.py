"""The largest change of a compared number that is no regression."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Tolerance(BaseModel):
    """The allowed change of a column, its bad direction, and the compared rows.

    `within` is in the unit of the column, or a share of the expected value if `relative`. With
    `only`, only rows with this value among their keys are compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    within: Annotated[float, Field(ge=0)]
    worse: Literal["lower", "higher", "either"] = "either"
    relative: bool = False
    only: str | None = None

    def allowed(self, expected: float) -> float:
        """Return the allowed change in the unit of the column."""
        return self.within * abs(expected) if self.relative else self.within

    def exceeded(self, expected: float, found: float) -> bool:
        """Return whether the change is a regression."""
        change = found - expected
        bad = {"lower": -change, "higher": change, "either": abs(change)}[self.worse]
        return not bad <= self.allowed(expected)  # NaN regresses

    def covers(self, keys: Iterable[object]) -> bool:
        """Return whether the row with these keys is compared."""
        return self.only is None or self.only in map(str, keys)
