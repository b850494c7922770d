"""A section of a TOML file, checked: a wrong key or value is named."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hq.errors import HQError

Section = TypeVar("Section", bound=BaseModel)


def checked(kind: type[Section], values: Mapping[str, object], where: str) -> Section:
    """The section with these values; HQError for a key or value that it cannot have."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise HQError(f"In {where}, {key}: {message}.") from error
