"""How a field of a request is treated: supported, neutral only, or ignored.

A field at its neutral value is accepted. A hint that changes nothing important is accepted and
listed in `hq.ignored`. Any other field that is not supported is an error that names it.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNSUPPORTED = "unsupported"  # pydantic's type of the error that `Only` raises


def _encodable(text: str) -> str:
    """JSON can encode single surrogates, which are no text."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("text with half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
ShortText = Annotated[str, Field(max_length=256), AfterValidator(_encodable)]


class _Field(ABC):
    """A field whose values `check` reads; null is always one of them."""

    @abstractmethod
    def check(self, value: Any) -> Any:
        """The value to use. Raises PydanticCustomError for one that the field cannot have."""

    @abstractmethod
    def json_schema(self) -> dict[str, Any]:
        """What OpenAPI says of it."""

    def __get_pydantic_core_schema__(self, _: Any, __: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self.json_schema()


class Only(_Field):
    """A field that is not supported: only null and its `neutral` values are accepted.

    `says` is the part of the error message that tells what is supported.
    """

    def __init__(self, *neutral: Any, says: str) -> None:
        self.neutral, self.says = neutral, says

    def check(self, value: Any) -> Any:
        """None for every neutral value."""
        if value is None or any(_equal(value, neutral) for neutral in self.neutral):
            return None
        raise PydanticCustomError(UNSUPPORTED, "{says}", {"says": self.says})

    def json_schema(self) -> dict[str, Any]:
        """Null and the neutral values."""
        return {"enum": [None, *self.neutral], "description": self.says}


class Hint(_Field):
    """A field that changes nothing important here: any value is accepted and ignored."""

    def check(self, value: Any) -> Any:
        """The value, which only `ignored` looks at."""
        return value

    def json_schema(self) -> dict[str, Any]:
        """Any value."""
        return {"description": "Accepted and ignored."}


class Number(_Field):
    """A number in a range, or null. `special` values stand for null."""

    def __init__(
        self,
        says: str,
        least: float,
        most: float,
        *,
        whole: bool = False,
        above: bool = False,
        special: tuple[Any, ...] = (),
    ) -> None:
        """`above`: the least value itself is not allowed."""
        self.says, self.least, self.most = says, least, most
        self._whole, self._above, self._special = whole, above, special

    def check(self, value: Any) -> float | None:
        """The number, or None."""
        if value is None or any(_equal(value, each) for each in self._special):
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
            raise self._error()
        if not self.least <= value <= self.most or (self._above and value == self.least):
            raise self._error()
        if self._whole and value != int(value):
            raise self._error()
        return int(value) if self._whole else float(value)

    def json_schema(self) -> dict[str, Any]:
        """The range, and what stands for null."""
        kind = {"type": "integer" if self._whole else "number"}
        lower = {"exclusiveMinimum" if self._above else "minimum": self.least}
        upper = {} if math.isinf(self.most) else {"maximum": self.most}
        others = {"enum": [None, *self._special]}
        return {"anyOf": [kind | lower | upper, others], "description": self.says}

    @property
    def range(self) -> str:
        """The values that are allowed, in words."""
        kind = "a whole number" if self._whole else "a number"
        least, most = _said(self.least), _said(self.most)
        limits = f"above {least}, up to {most}" if self._above else f"from {least} to {most}"
        if math.isinf(self.most):
            limits = f"of at least {least}"
        others = "".join(f", {json.dumps(value)}" for value in self._special)
        return f"{kind} {limits}{others}, or null"

    def _error(self) -> PydanticCustomError:
        return PydanticCustomError("range", "expected {range}", {"range": self.range})


class Body(BaseModel):
    """A part of a request: strict types, finite numbers. A field that is not declared is null."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Annotated[Any, Only(says="the field is not known here")]]

    def ignored(self) -> Iterator[str]:
        """Names of the hints that were given, those of parts of the body included."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None or value in ("", [], {}):
                continue
            if any(isinstance(each, Hint) for each in field.metadata):
                yield name
            parts = value if isinstance(value, (list, tuple)) else [value]
            yield from (
                f"{name}.{inner}"
                for part in parts
                if isinstance(part, Body)
                for inner in part.ignored()
            )


def _equal(one: Any, other: Any) -> bool:
    """As JSON compares: 0 is 0.0, but true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _said(number: float) -> str:
    if isinstance(number, int) and number > 2**16:  # the largest of a type
        return f"2^{number.bit_length()} - 1"
    return f"{number:g}"
