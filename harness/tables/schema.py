"""What a row of a result table is. Each experiment documents its own columns, in one place.

An estimate becomes three columns: NAME, NAME_low and NAME_high, its 95% interval. Intervals are
percentile bootstraps unless a column says otherwise. They resample entities, not questions: what a
model knows about one entity is not independent between questions.
"""

from pydantic import BaseModel, ConfigDict

ENTITIES = (
    "independent groups of these, no two of which share an entity: the unit that is resampled"
)


class Row(BaseModel):
    """A row of a table. `Tables` says which columns identify it."""

    model_config = ConfigDict(frozen=True)


Tables = dict[str, tuple[type[Row], tuple[str, ...]]]
"""Table name: its row type, and the columns that identify a row."""
