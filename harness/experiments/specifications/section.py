"""The section [specifications] of a study."""

from typing import Annotated

from pydantic import Field, field_validator

from harness.studies.section import Section


class SpecificationsSection(Section):
    """Other folds, halves of the units, and numbers of neurons that are tried."""

    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (10, 30, 100)
    seeds: Annotated[int, Field(ge=1)] = 3  # other assignments of units to folds
    halves: Annotated[int, Field(ge=1)] = 2  # pairs of complementary halves of the units
    splits: Annotated[int, Field(ge=2)] = 30  # of the agreement of probes on two halves
    frequency_splits: Annotated[int, Field(ge=2)] = 10  # of the agreement of frequencies

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(sizes)))
