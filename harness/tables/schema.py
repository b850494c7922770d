"""What a row of a result table is. Each experiment documents its own columns, in one place.

An estimate becomes three columns: NAME, NAME_low and NAME_high, its 95% interval. Intervals are
percentile bootstraps unless a column says otherwise. They resample entities, not questions: what a
model knows of one entity is not independent from question to question.
"""

from pydantic import BaseModel, ConfigDict

ENTITIES = "groups of them that are independent, as no two share an entity: what intervals resample"


class Row(BaseModel):
    """A row of a table; `key` fields tell rows apart."""

    model_config = ConfigDict(frozen=True)


Tables = dict[str, tuple[type[Row], tuple[str, ...]]]
"""Table name → its row type, and the columns that tell rows apart."""
