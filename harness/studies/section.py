"""Validated sections of TOML files."""

from collections.abc import Mapping
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hq.errors import HQError

S = TypeVar("S", bound=BaseModel)


def checked(kind: type[S], values: Mapping[str, object], where: str) -> S:
    """Return the section with these values. Raises HQError, naming a wrong key or value."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise HQError(f"In {where}, {key}: {message}.") from error


class Section(BaseModel):
    """An immutable section, without unknown keys. The text below a key is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def of(cls, values: Mapping[str, object], where: str) -> Self:
        """Return the section with these values. Raises HQError, naming a wrong key or value."""
        return checked(cls, values, where)
