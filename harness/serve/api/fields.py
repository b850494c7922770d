"""Kinds of request fields: supported, accepted at a neutral value only, or ignored.

A field that is not supported is accepted at its neutral values. A hint that does not change answers
is accepted and listed in `hq.ignored`. Any other unsupported field is an error that names it.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNSUPPORTED_FIELD = "unsupported"  # pydantic's type of the error that `NeutralOnly` raises


def _require_encodable(text: str) -> str:
    """Raise ValueError for single surrogates: JSON can contain them, UTF-8 cannot."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the text contains half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(_require_encodable)]
ShortText = Annotated[str, Field(max_length=256), AfterValidator(_require_encodable)]


class _FieldKind(ABC):
    """Metadata of a pydantic field that validates its values; null is always accepted."""

    @abstractmethod
    def check(self, value: Any) -> Any:
        """Return the value to use. Raises PydanticCustomError if the value is not accepted."""

    @abstractmethod
    def json_schema(self) -> dict[str, Any]:
        """Return the field's JSON schema for the OpenAPI description."""

    def __get_pydantic_core_schema__(self, _: Any, __: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self.json_schema()


class NeutralOnly(_FieldKind):
    """An unsupported field: only null and its neutral values are accepted.

    Args:
        neutral: values that have no effect.
        message: end of the error message, which says what is supported.
    """

    def __init__(self, *neutral: Any, message: str) -> None:
        self.neutral, self.message = neutral, message

    def check(self, value: Any) -> Any:
        """Return None for a neutral value."""
        if value is None or any(_json_equal(value, neutral) for neutral in self.neutral):
            return None
        raise PydanticCustomError(UNSUPPORTED_FIELD, "{message}", {"message": self.message})

    def json_schema(self) -> dict[str, Any]:
        """Return the enumeration of null and the neutral values."""
        return {"enum": [None, *self.neutral], "description": self.message}


class IgnoredHint(_FieldKind):
    """A field that does not change answers: any value is accepted and ignored."""

    def check(self, value: Any) -> Any:
        """Return the value, which only `RequestModel.ignored` reads."""
        return value

    def json_schema(self) -> dict[str, Any]:
        """Return a schema without constraints."""
        return {"description": "Accepted and ignored."}


class Number(_FieldKind):
    """A number in a range, or null.

    Args:
        description: what the field does.
        low, high: limits of the range.
        whole: whether the number has to be an integer.
        above: whether `low` itself is excluded.
        special: values with the meaning of null.
    """

    def __init__(
        self,
        description: str,
        low: float,
        high: float,
        *,
        whole: bool = False,
        above: bool = False,
        special: tuple[Any, ...] = (),
    ) -> None:
        self.description, self.low, self.high = description, low, high
        self._whole, self._above, self._special = whole, above, special

    def check(self, value: Any) -> float | None:
        """Return the number, or None."""
        if value is None or any(_json_equal(value, special) for special in self._special):
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
            raise self._error()
        if not self.low <= value <= self.high or (self._above and value == self.low):
            raise self._error()
        if self._whole and value != int(value):
            raise self._error()
        return int(value) if self._whole else float(value)

    def json_schema(self) -> dict[str, Any]:
        """Return the schema of the range, null and the special values."""
        number_type = {"type": "integer" if self._whole else "number"}
        minimum = {"exclusiveMinimum" if self._above else "minimum": self.low}
        maximum = {} if math.isinf(self.high) else {"maximum": self.high}
        null_values = {"enum": [None, *self._special]}
        return {
            "anyOf": [number_type | minimum | maximum, null_values],
            "description": self.description,
        }

    @property
    def range(self) -> str:
        """The accepted values in words."""
        number_type = "a whole number" if self._whole else "a number"
        low, high = _number_text(self.low), _number_text(self.high)
        limits = f"above {low}, up to {high}" if self._above else f"from {low} to {high}"
        if math.isinf(self.high):
            limits = f"of at least {low}"
        special = "".join(f", {json.dumps(value)}" for value in self._special)
        return f"{number_type} {limits}{special}, or null"

    def _error(self) -> PydanticCustomError:
        return PydanticCustomError("range", "expected {range}", {"range": self.range})


class RequestModel(BaseModel):
    """An object in a request: strict types, finite numbers. Undeclared fields must be null."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Annotated[Any, NeutralOnly(message="the field is unknown")]]

    def ignored(self) -> Iterator[str]:
        """Yield the names of hints with a value, including those of nested objects."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None or value in ("", [], {}):
                continue
            if any(isinstance(kind, IgnoredHint) for kind in field.metadata):
                yield name
            parts = value if isinstance(value, (list, tuple)) else [value]
            yield from (
                f"{name}.{nested_name}"
                for part in parts
                if isinstance(part, RequestModel)
                for nested_name in part.ignored()
            )


def _json_equal(one: Any, other: Any) -> bool:
    """Compare as JSON does: 0 equals 0.0, but true does not equal 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _number_text(number: float) -> str:
    if isinstance(number, int) and number > 2**16:  # the largest value of an integer type
        return f"2^{number.bit_length()} - 1"
    return f"{number:g}"
