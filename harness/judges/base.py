"""What a judge decides: questions, verdicts and the judge's protocol."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers, of which `aliases[0]` is the canonical one.

    `entities` are what the question is about; questions that share one are never in two folds.
    `distractors` are wrong answers of the same type.
    """

    id: str
    question: str
    aliases: tuple[str, ...]
    relation: str
    entities: tuple[str, ...]
    distractors: tuple[str, ...] = ()

    @property
    def wording(self) -> str:
        """The question's text."""
        return self.question


class Verdict(StrEnum):
    """A judge's verdict on one response."""

    RIGHT = "right"
    WRONG = "wrong"
    UNCERTAIN = "uncertain"  # no answer, or "I don't know": the question is set aside
    CUT = "cut"  # the token limit came before an answer: the question is set aside


class Judge(Protocol):
    """Decides whether a response is right.

    Labels are stored under `identity`, which must change whenever a verdict can change.
    """

    @property
    def identity(self) -> str:
        """Name and version of the judge."""
        ...

    @property
    def unclear(self) -> int:
        """Number of responses set aside because the judge's own reply was not a verdict."""
        ...

    def judge(self, response: str, question: Question, truncated: bool) -> Verdict:
        """Return the verdict; `truncated` says whether the token limit ended the response."""
        ...


@runtime_checkable
class PromptedJudge(Judge, Protocol):
    """A judge that also answers a grading prompt, so that it can judge the trials of a scenario."""

    @property
    def label(self) -> str:
        """A short name for tables, such as "llm:MODEL"."""
        ...

    def choose(self, prompt: str, words: tuple[str, ...]) -> str | None:
        """Return the word, in lower case, that answers the prompt; None if no reply is clear."""
        ...
