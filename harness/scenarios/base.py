"""What a scenario is: a named loader of questions that have short, checkable answers."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Annotated

from pydantic import Field, ValidationError, validate_call

from hq.errors import HQError
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `entities` are what train and test must not share; `aliases[0]` is the answer.

    `distractors` are wrong answers of the same type, none of them an alias of the truth.
    """

    id: str
    question: str
    aliases: tuple[str, ...]
    relation: str
    entities: tuple[str, ...]
    distractors: tuple[str, ...] = ()


Loader = Callable[..., list[Question]]
Limit = Annotated[int, Field(ge=1)] | None
"""How many questions a loader may give; None for all."""

SCENARIOS: Registry[Loader] = Registry("scenario")

register = SCENARIOS.register


def load(name: str, **options: object) -> list[Question]:
    """The questions of a scenario; an unknown scenario or option is an HQError."""
    loader = SCENARIOS[name]
    try:
        return validate_call(loader)(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise HQError(
            f"Scenario {name!r} cannot be loaded so ({first['loc'][0]}: {first['msg']}): "
            f"its options are {', '.join(signature(loader).parameters)}."
        ) from error
