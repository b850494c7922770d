"""The rule judge: whether a response gives one of the accepted answers."""

import re

from harness.judges.answers import (
    answer_line,
    first_line,
    listed,
    without_preamble,
    without_reasoning,
)
from harness.judges.base import JUDGES, Judge, Question, Verdict
from harness.judges.claims import hedges, without_denied
from harness.judges.mentions import is_answer, is_longer_name, is_near, mentions
from harness.judges.phrases import NO, UNCERTAIN, YES
from harness.judges.text import normalise

# Raised with every change of a rule, here or in the other modules of harness.judges that it reads
# with.
_VERSION = 2


@JUDGES.register("rules")
class RuleJudge:
    """TriviaQA's rule, made to look inside a sentence.

    An alias counts where it stands on word boundaries in the line that answers, where it is not
    denied ("not Lyon"). Offered beside another answer ("Lyon or Paris") it is set aside, as is what
    the rules cannot tell: an inflected form, another reading of a number. A distractor that holds
    the alias's words ("Guinea-Bissau" for "Guinea") is read as itself.
    """

    identity = f"rules, version {_VERSION}"
    unclear = 0

    def judge(self, response: str, question: Question, truncated: bool) -> Verdict:
        """Reasoning that does not end is cut off; a disclaimer counts before what follows it."""
        told = without_reasoning(response)
        if told is None:
            return Verdict.CUT
        line = answer_line(told)
        if not normalise(line):
            return Verdict.CUT if truncated and response.strip() else Verdict.UNCERTAIN
        if _asks_yes_or_no(question):
            return _polarity(line, question, truncated)
        whole = is_answer(line, question.aliases) or is_answer(first_line(told), question.aliases)
        if whole and not _lists_others(told, question):
            return Verdict.RIGHT
        if UNCERTAIN.search(normalise(line)):
            return Verdict.UNCERTAIN
        return _named(line, told, question) or (Verdict.CUT if truncated else Verdict.WRONG)


def _named(line: str, told: str, question: Question) -> Verdict | None:
    """The verdict on a line by what it names; None where no accepted answer comes into it."""
    names, others = question.aliases, question.distractors
    claimed = without_denied(line, names)
    if mentions(claimed, names, others):
        is_one_of_several = hedges(claimed, names) or _lists_others(told, question)
        is_unclear = is_one_of_several or is_longer_name(claimed, names)
        return Verdict.UNCERTAIN if is_unclear else Verdict.RIGHT
    is_listed = any(mentions(item, names, others) for item in listed(told))
    return Verdict.UNCERTAIN if is_listed or is_near(claimed, names) else None


def _lists_others(told: str, question: Question) -> bool:
    """Whether the response is a list, and not every item of it names the answer."""
    return not all(mentions(item, question.aliases, question.distractors) for item in listed(told))


_YES_OR_NO = {"yes": YES, "true": YES, "correct": YES, "no": NO, "false": NO, "incorrect": NO}
_ASKS_FOR_A_NAME = re.compile(r"\b(?:what|which|who|whom|whose|where|when|how|name|why)\b")


def _asks_yes_or_no(question: Question) -> bool:
    """Whether the accepted answers are yes or no, as words; nobelium's symbol is "No" too."""
    is_word = all(normalise(alias) in _YES_OR_NO for alias in question.aliases)
    asks_for_a_name = question.distractors or _ASKS_FOR_A_NAME.search(question.question.lower())
    return is_word and not asks_for_a_name


def _polarity(line: str, question: Question, truncated: bool) -> Verdict:
    """Whether the line says what the accepted answer says; set aside where it says neither."""
    said = normalise(without_preamble(line))
    start = {sign for sign in (YES, NO) if (found := sign.search(said)) and found.start() == 0}
    signs = start or {sign for sign in (YES, NO) if sign.search(said)}
    if len(signs) != 1:
        return Verdict.CUT if truncated and not signs else Verdict.UNCERTAIN
    accepted = {_YES_OR_NO[normalise(alias)] for alias in question.aliases}
    return Verdict.RIGHT if signs <= accepted else Verdict.WRONG


@JUDGES.register("llm")
def _llm_judge() -> Judge:
    from harness.judges.llm import LLMJudge  # httpx is not needed for the rules

    return LLMJudge.from_environment()
