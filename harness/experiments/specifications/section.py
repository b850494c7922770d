"""The section [specifications] of a study."""

from typing import Annotated

from pydantic import Field, field_validator

from harness.studies.section import Section


class SpecificationsSection(Section):
    """Other folds, halves of the units, and numbers of neurons that are tried."""

    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (10, 30, 100)
    """Numbers of neurons to select."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Other assignments of units to folds."""
    halves: Annotated[int, Field(ge=1)] = 2
    """Pairs of complementary halves of the units."""
    splits: Annotated[int, Field(ge=2)] = 30
    """Splits to measure how far probes on two halves agree."""
    frequency_splits: Annotated[int, Field(ge=2)] = 10
    """Splits to measure how far selection frequencies agree."""

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(sizes)))
