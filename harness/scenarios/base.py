"""What a scenario is: a named loader of questions that have short, checkable answers."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

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

SCENARIOS: Registry[Loader] = Registry("scenario")

register = SCENARIOS.register


def load(name: str, **options: object) -> list[Question]:
    """The questions of a scenario; an unknown scenario or option is an HQError."""
    loader = SCENARIOS[name]
    accepted = signature(loader)
    try:
        accepted.bind(**options)
    except TypeError as error:
        raise HQError(
            f"Scenario {name!r} cannot be loaded so ({error}): "
            f"its options are {', '.join(accepted.parameters)}."
        ) from error
    return loader(**options)
