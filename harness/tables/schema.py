"""Rows of result tables. Each experiment describes its columns in its own module `tables`.

An estimate has three columns: NAME, NAME_low and NAME_high, its 95% interval. Intervals are
percentile bootstraps unless the description of a column says otherwise. They resample entities, not
questions, because answers to questions about one entity are not independent.
"""

from pydantic import BaseModel, ConfigDict

ENTITIES = (
    "independent groups of these, no two of which share an entity: the unit that is resampled"
)


class Row(BaseModel):
    """A row of a table."""

    model_config = ConfigDict(frozen=True)


Tables = dict[str, tuple[type[Row], tuple[str, ...]]]
"""Row type and key columns of each table, by name."""
