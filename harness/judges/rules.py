"""The rule judge: whether a response gives one of the accepted answers."""

import re

from harness.judges.base import Question, Verdict
from harness.judges.claims import hedges, without_denied
from harness.judges.mentions import is_answer, is_longer_name, is_near, mentions
from harness.judges.phrases import NO, UNCERTAIN, YES
from harness.judges.responses import (
    answer_line,
    first_text_line,
    list_items,
    without_preamble,
    without_reasoning,
)
from harness.judges.text import normalise

# Raise it whenever a verdict can change, by a rule here or in the modules imported above.
_VERSION = 2


class RuleJudge:
    """TriviaQA's rule, extended to answers inside a sentence.

    A response is right if its answering line contains an alias on word boundaries that it does not
    deny ("not Lyon"). It is uncertain if it offers another answer too ("Lyon or Paris"), or if the
    rules cannot decide: an inflected form, an ambiguous number. A distractor that contains the
    alias's words ("Guinea-Bissau" for "Guinea") counts as the distractor.
    """

    identity = f"rules, version {_VERSION}"
    unclear = 0

    def judge(self, response: str, question: Question, truncated: bool) -> Verdict:
        """Return the verdict; unfinished reasoning is CUT, a disclaimer before an answer counts."""
        answer = without_reasoning(response)
        if answer is None:
            return Verdict.CUT
        line = answer_line(answer)
        if not normalise(line):
            return Verdict.CUT if truncated and response.strip() else Verdict.UNCERTAIN
        if _asks_yes_or_no(question):
            return _polarity(line, question, truncated)
        lines = (line, first_text_line(answer))
        is_exact = any(is_answer(text, question.aliases) for text in lines)
        if is_exact and not _lists_others(answer, question):
            return Verdict.RIGHT
        if UNCERTAIN.search(normalise(line)):
            return Verdict.UNCERTAIN
        by_name = _verdict_by_name(line, answer, question)
        return by_name or (Verdict.CUT if truncated else Verdict.WRONG)


def _verdict_by_name(line: str, answer: str, question: Question) -> Verdict | None:
    """The verdict by the names in a line; None if no accepted answer is among them."""
    names, others = question.aliases, question.distractors
    claimed = without_denied(line, names)
    if mentions(claimed, names, others):
        is_one_of_several = hedges(claimed, names) or _lists_others(answer, question)
        is_unclear = is_one_of_several or is_longer_name(claimed, names)
        return Verdict.UNCERTAIN if is_unclear else Verdict.RIGHT
    is_listed = any(mentions(item, names, others) for item in list_items(answer))
    return Verdict.UNCERTAIN if is_listed or is_near(claimed, names) else None


def _lists_others(answer: str, question: Question) -> bool:
    """Whether the response is a list with items that do not name an accepted answer."""
    names, others = question.aliases, question.distractors
    return not all(mentions(item, names, others) for item in list_items(answer))


_YES_OR_NO = {"yes": YES, "true": YES, "correct": YES, "no": NO, "false": NO, "incorrect": NO}
_ASKS_FOR_A_NAME = re.compile(r"\b(?:what|which|who|whom|whose|where|when|how|name|why)\b")


def _asks_yes_or_no(question: Question) -> bool:
    """Whether all accepted answers are words for yes or no; nobelium's symbol "No" is not."""
    is_word = all(normalise(alias) in _YES_OR_NO for alias in question.aliases)
    asks_for_a_name = question.distractors or _ASKS_FOR_A_NAME.search(question.question.lower())
    return is_word and not asks_for_a_name


def _polarity(line: str, question: Question, truncated: bool) -> Verdict:
    """The verdict on a yes-or-no answer; uncertain if the line says neither or both."""
    plain = normalise(without_preamble(line))
    start = {sign for sign in (YES, NO) if (match := sign.search(plain)) and match.start() == 0}
    signs = start or {sign for sign in (YES, NO) if sign.search(plain)}
    if len(signs) != 1:
        return Verdict.CUT if truncated and not signs else Verdict.UNCERTAIN
    accepted = {_YES_OR_NO[normalise(alias)] for alias in question.aliases}
    return Verdict.RIGHT if signs <= accepted else Verdict.WRONG
