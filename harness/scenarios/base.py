"""What a scenario is: a named loader of questions that have short, checkable answers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Annotated

from pydantic import Field, ValidationError, validate_call

from harness.scenarios.rows import SetAside
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

    @property
    def wording(self) -> str:
        """What is asked."""
        return self.question


class Questions(list[Question]):
    """The questions of a file, in their order, and its rows that could not be used."""

    def __init__(self, questions: Iterable[Question], set_aside: Sequence[SetAside] = ()) -> None:
        super().__init__(questions)
        self.set_aside = tuple(set_aside)


Loader = Callable[..., list[Question]]
Limit = Annotated[int, Field(ge=1)] | None
"""How many questions a loader may give; None for all."""

SCENARIOS: Registry[Loader] = Registry("scenario")

register = SCENARIOS.register


def load(name: str, **options: object) -> Questions:
    """The questions of a scenario; an unknown scenario or option is an HQError."""
    loader = SCENARIOS[name]
    try:
        found = validate_call(loader)(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise HQError(
            f"Scenario {name!r} cannot be loaded so ({first['loc'][0]}: {first['msg']}): "
            f"its options are {', '.join(signature(loader).parameters)}."
        ) from error
    return found if isinstance(found, Questions) else Questions(found)
