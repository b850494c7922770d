"""What a scenario is: a named loader of questions that have short, checkable answers."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from pydantic import Field, ValidationError, validate_call

from harness.judges.base import Question
from harness.scenarios.rows import SetAside
from hq.errors import HQError
from hq.registry import Registry


class Questions(list[Question]):
    """The questions of a file, in their order, and its rows that could not be used."""

    def __init__(self, questions: Iterable[Question], set_aside: Sequence[SetAside] = ()) -> None:
        super().__init__(questions)
        self.set_aside = tuple(set_aside)


Loader = Callable[..., list[Question]]
Limit = Annotated[int, Field(ge=1)] | None
"""How many questions a loader may give; None for all."""

SCENARIOS: Registry[Loader] = Registry("scenario", "hq.scenarios", inspect.isfunction)

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
            f"its options are {', '.join(inspect.signature(loader).parameters)}."
        ) from error
    return found if isinstance(found, Questions) else Questions(found)
