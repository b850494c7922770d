"""A section of a TOML file, validated: a wrong key or value is named."""

from collections.abc import Mapping
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hq.errors import HQError

S = TypeVar("S", bound=BaseModel)


def checked(kind: type[S], values: Mapping[str, object], where: str) -> S:
    """The section with these values. Raises HQError for a key or value that it cannot have."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise HQError(f"In {where}, {key}: {message}.") from error


class Section(BaseModel):
    """A section that cannot be changed and has no other keys than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, values: Mapping[str, object], where: str) -> Self:
        """The section with these values. Raises HQError for a key or value that it cannot have."""
        return checked(cls, values, where)
