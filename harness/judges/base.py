"""What a judge decides and of what: questions, verdicts, and the registry of judges."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

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


class Verdict(StrEnum):
    """What a judge says of one response."""

    RIGHT = "right"
    WRONG = "wrong"
    UNCERTAIN = "uncertain"  # no answer, or "I don't know": set aside
    CUT = "cut"  # the token limit came before an answer: set aside, not wrong


class Judge(Protocol):
    """Gives a verdict on a response; `truncated` says that the token limit ended it.

    Labels are kept under `identity`: it must change whenever a verdict may.
    """

    @property
    def identity(self) -> str:
        """Which judge, in which version."""
        ...

    @property
    def unclear(self) -> int:
        """How many responses were set aside because the judge's own reply was not clear."""
        ...

    def judge(self, response: str, question: Question, truncated: bool) -> Verdict:
        """The verdict on one response."""
        ...


JUDGES: Registry[Callable[[], Judge]] = Registry("judge", "hq.judges")


def judge(name: str) -> Judge:
    """The judge of that name; HQError for an unknown one, or what it lacks in the environment."""
    return JUDGES[name]()
