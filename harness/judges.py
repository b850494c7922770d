"""Judges: whether a response answers its question. The rule judge, and the registry of judges."""

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from harness.mentions import mentions
from harness.phrases import UNCERTAIN
from harness.text import normalise
from hq.registry import Registry

if TYPE_CHECKING:  # scenarios of over-compliance use the judges
    from harness.scenarios.base import Question


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

    def judge(self, response: str, question: "Question", truncated: bool) -> Verdict:
        """The verdict on one response."""
        ...


JUDGES: Registry[Callable[[], Judge]] = Registry("judge")


def judge(name: str) -> Judge:
    """The judge of that name; HQError for an unknown one, or what it lacks in the environment."""
    return JUDGES[name]()


# Raised with every change of a rule, here or in harness/{mentions,phrases,text}.py.
_VERSION = 1


@JUDGES.register("rules")
class RuleJudge:
    """TriviaQA's rule, made to look inside a sentence.

    An alias counts where it stands on word boundaries in the response's first line. An alias of one
    or two characters, or a number, counts as the whole answer, or as a token in its own case. A
    distractor that holds the alias's words ("Guinea-Bissau" for "Guinea") is read as itself.
    """

    identity = f"rules, version {_VERSION}"
    unclear = 0

    def judge(self, response: str, question: "Question", truncated: bool) -> Verdict:
        """`uncertain` comes before an answer that follows a disclaimer."""
        line = first_line(response)
        answer = normalise(line)
        if not answer:
            return Verdict.CUT if truncated and response.strip() else Verdict.UNCERTAIN
        if any(answer == normalise(alias) for alias in question.aliases if normalise(alias)):
            return Verdict.RIGHT
        if UNCERTAIN.search(answer):
            return Verdict.UNCERTAIN
        if mentions(line, question.aliases, question.distractors):
            return Verdict.RIGHT
        return Verdict.CUT if truncated else Verdict.WRONG


def first_line(response: str) -> str:
    """The line with a response's answer: in a list of questions, the model writes on."""
    return response.strip().partition("\n")[0].strip()


@JUDGES.register("llm")
def _llm_judge() -> Judge:
    from harness.llm_judge import LLMJudge  # httpx is not needed for the rules

    return LLMJudge.from_environment()
