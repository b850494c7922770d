"""The question sets as scenarios of over-compliance: an answer that the model does not have."""

from collections.abc import Iterator
from functools import partial

from harness.judges.base import Question, Verdict
from harness.judges.rules import RuleJudge
from harness.scenarios.base import load
from harness.scenarios.trials import Behaviour, Outcome, Source, Trial, as_question, enter
from hq.errors import HQError

_OUTCOMES = {
    Verdict.WRONG: Outcome.COMPLIED,
    Verdict.RIGHT: Outcome.RESISTED,
    Verdict.UNCERTAIN: Outcome.RESISTED,
    Verdict.CUT: Outcome.UNCLEAR,
}


def _facts(source: str | None, seed: int) -> Iterator[Trial]:
    if source is not None:
        raise HQError(f"The scenario 'facts' reads no file: leave out its source, {source}.")
    return map(_trial, load("facts", seed=seed))


def _questions(name: str, source: str | None, seed: int) -> Iterator[Trial]:
    return map(_trial, load(name, source=source, seed=seed))


def _trial(question: Question) -> Trial:
    return Trial(
        id=question.id,
        prompt=question.question,
        entities=question.entities,
        aliases=question.aliases,
        targets=question.distractors,
    )


def judge(response: str, trial: Trial, truncated: bool) -> Outcome:
    """The rule judge's verdict, read as compliance."""
    asked = as_question(trial, trial.prompt)
    return _OUTCOMES[RuleJudge().judge(response, asked, truncated)]


_SOURCES: dict[str, Source] = {
    "facts": _facts,
    **{name: partial(_questions, name) for name in ("triviaqa", "nq", "bioasq")},
}

for _name, _trials in _SOURCES.items():
    enter(
        Behaviour(
            name=_name,
            measures="Gives a wrong answer to a short question, rather than the right one or none.",
            form="few-shot",
            trials=_trials,
            rule=judge,
        )
    )
