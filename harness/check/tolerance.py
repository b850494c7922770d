"""How far a compared number may move before it counts as a regression."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Tolerance(BaseModel):
    """How far a column may move, which direction is a regression, and in which rows.

    `within` is in the column's own unit, or a share of the expected value where `relative`. With
    `only`, rows are compared that have this value among their keys, and no others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    within: Annotated[float, Field(ge=0)]
    worse: Literal["lower", "higher", "either"] = "either"
    relative: bool = False
    only: str | None = None

    def allowed(self, expected: float) -> float:
        """How far the value may move, in the column's own unit."""
        return self.within * abs(expected) if self.relative else self.within

    def exceeded(self, expected: float, found: float) -> bool:
        """Whether the change is a regression."""
        change = found - expected
        bad = {"lower": -change, "higher": change, "either": abs(change)}[self.worse]
        return not bad <= self.allowed(expected)  # NaN regresses

    def covers(self, keys: Iterable[object]) -> bool:
        """Whether the row with these keys is compared."""
        return self.only is None or self.only in map(str, keys)
