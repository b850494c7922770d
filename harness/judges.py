"""Judges: whether a response answers its question. The rule judge, and the registry of judges."""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from harness.scenarios.base import Question
from harness.text import contains, fold, normalise
from hq.registry import Registry


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


JUDGES: Registry[Callable[[], Judge]] = Registry("judge")


def judge(name: str) -> Judge:
    """The judge of that name; HQError for an unknown one, or what it lacks in the environment."""
    return JUDGES[name]()


# As the normalisation leaves them: apostrophes are spaces.
_UNCERTAIN = re.compile(
    r"\bi (?:do not|don t|don) (?:know|have (?:any |enough |that |this |specific )?information)\b"
    r"|\bi (?:am|m) (?:not|un) ?(?:sure|certain|able|aware|familiar)\b"
    r"|\bi (?:can not|cannot|can t|could not|couldn t) (?:answer|find|say|tell|provide|determine)\b"
    r"|\bi have no (?:idea|information)\b|^no idea\b|^as ai\b|\bas an ai\b"
    r"|^(?:it is |it s |that is )?(?:unknown|not known|uncertain|unclear|n a|none of above)$"
    r"|\b(?:is|are) not (?:known|specified|mentioned|provided)\b"
)
# Symbols and codes that are words of a sentence: "He is", "In the", "No".
_WORDS = frozenset(
    "a am as at be he i in is it me my no of on or so to us we an by do go if".split()
)
_SHORT = 2
_VERSION = 1  # raised with every change of a rule, here or in harness/text.py


@JUDGES.register("rules")
class RuleJudge:
    """TriviaQA's rule, made to look inside a sentence.

    An alias counts where it stands on word boundaries in the response's first line. An alias of one
    or two characters, or a number, counts as the whole answer, or as a token in its own case. A
    distractor that holds the alias's words ("Guinea-Bissau" for "Guinea") is read as itself.
    """

    identity = f"rules, version {_VERSION}"
    unclear = 0

    def judge(self, response: str, question: Question, truncated: bool) -> Verdict:
        """`uncertain` comes before an answer that follows a disclaimer."""
        line = _first_line(response)
        answer = normalise(line)
        if not answer:
            return Verdict.CUT if truncated and response.strip() else Verdict.UNCERTAIN
        if any(answer == normalise(alias) for alias in question.aliases if normalise(alias)):
            return Verdict.RIGHT
        if _UNCERTAIN.search(answer):
            return Verdict.UNCERTAIN
        if _mentions(line, question):
            return Verdict.RIGHT
        return Verdict.CUT if truncated else Verdict.WRONG


def _first_line(response: str) -> str:
    return response.strip().partition("\n")[0].strip()


def _mentions(line: str, question: Question) -> bool:
    aliases = {alias: normalise(alias) for alias in question.aliases}
    answer = _without_lookalikes(normalise(line), set(aliases.values()), question.distractors)
    return any(
        _has_token(line, alias) if _is_short(plain) else contains(answer, plain)
        for alias, plain in aliases.items()
    )


def _is_short(plain: str) -> bool:
    return len(plain) <= _SHORT or plain.replace(" ", "").isdigit()


def _without_lookalikes(answer: str, aliases: set[str], distractors: tuple[str, ...]) -> str:
    """The answer without the distractors that hold an alias among their words."""
    others = {normalise(distractor) for distractor in distractors} - aliases
    for other in sorted(others, key=len, reverse=True):
        if any(contains(other, alias) for alias in aliases):
            answer = f" {answer} ".replace(f" {other} ", " ").strip()
    return answer


def _has_token(line: str, alias: str) -> bool:
    """Whether `alias` stands in the line as a token of its own, in its own case.

    A number must not be part of a longer one (33 in 1,933 or 33.5); a symbol that is also an
    English word must not be followed by another word ("He is" is not helium).
    """
    token = re.escape(fold(alias).strip())
    bounds = rf"(?<![\w.,])(?<!\w[-'’]){token}(?!\w|[-'’]\w|[.,]\d)"
    if alias.strip().lower() in _WORDS:
        bounds += r"(?!\s+\w)"
    return re.search(bounds, fold(line)) is not None


@JUDGES.register("llm")
def _llm_judge() -> Judge:
    from harness.llm_judge import LLMJudge  # httpx is not needed for the rules

    return LLMJudge.from_environment()
