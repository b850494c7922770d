"""Rows of result tables. Each experiment describes its columns in its own module `tables`.

An estimate has three columns: NAME, NAME_low and NAME_high, its 95% interval. Intervals are those
of `hq.stats.intervals` unless the description of a column says otherwise. They leave out whole
units, not rows, because answers of one unit are not independent.
"""

from pydantic import BaseModel, ConfigDict, Field

ENTITIES = "independent units of these, left out one at a time to compute intervals"
UNITS = (
    "independent units: samples linked by a given answer, an entity or a wording. Intervals are "
    "jackknife intervals over units (docs/statistics.md)"
)


EXPERT = "expert"
"""The column of a neuron's expert, which a table without mixtures of experts does not have."""
ExpertField = Field(
    default=None,
    description="expert of the neuron, from 0, the shared one last; empty in dense layers",
)


class Row(BaseModel):
    """A row of a table."""

    model_config = ConfigDict(frozen=True)


Tables = dict[str, tuple[type[Row], tuple[str, ...]]]
"""Row type and key columns of each table, by name."""
