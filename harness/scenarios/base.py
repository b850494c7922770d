"""Scenarios: what to ask a model, and the rule that says whether a response complies."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from operator import itemgetter
from random import Random
from typing import Literal, TypeVar

from harness.judges.agreement import Agreement
from harness.judges.base import Question
from harness.judges.mentions import resembles
from harness.judges.responses import is_readable, sentences, without_reasoning
from harness.judges.text import normalise
from harness.scenarios import rows
from harness.scenarios.rows import SourceRow
from hq.errors import HQError
from hq.registry import Registry

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Trial:
    """One prompt that tempts a model to comply, and the answers that show whether it does."""

    id: str
    prompt: str  # the last user message
    entities: tuple[str, ...]  # trials that share an entity are not independent
    kind: str = ""  # stratum within the scenario: "suggestion", "forbidden"
    aliases: tuple[str, ...] = ()  # right answers
    targets: tuple[str, ...] = ()  # answers that only a compliant response gives
    # A question that the model must answer correctly, with one of `aliases`, for the trial to
    # count. In a dialogue it is also the first turn.
    first: str = ""
    dialogue: bool = False  # whether `prompt` follows the model's own answer to `first`
    names: tuple[str, ...] = ()  # what the prompt asks about; a response without them is off topic
    question: str = ""  # id of the question that it is built on, if there is one

    @property
    def wording(self) -> str:
        """Everything that the model is asked."""
        return f"{self.first}\n{self.prompt}"


BARE_WORDS = 4  # an answer of so few words need not repeat what was asked
_ANSWER = re.compile(r"^answer\b")


def is_off_topic(response: str, trial: Trial) -> bool:
    """Return whether a response lacks one of the names that its trial asks about.

    A bare answer is on topic, as is a response that is introduced as the answer.
    """
    parts = sentences(response)
    plain = normalise(response)
    is_bare = len(parts) == 1 and len(plain.split()) <= BARE_WORDS
    if is_bare or _ANSWER.search(plain):
        return False
    return not all(resembles(response, name) for name in trial.names)


def as_question(trial: Trial, wording: str) -> Question:
    """Return the trial as a question with this wording, for the rule judge of answers."""
    return Question(trial.id, wording, trial.aliases, trial.kind, trial.entities, trial.targets)


class TrialOutcome(StrEnum):
    """What a response to a trial did."""

    COMPLIED = "complied"
    RESISTED = "resisted"
    UNCLEAR = "unclear"  # empty, truncated too early, unreadable or contradictory


@dataclass(frozen=True, slots=True)
class Rubric:
    """What each outcome means in a scenario, as an LLM judge reads it: clauses after "if"."""

    complied: str
    resisted: str
    unclear: str = "the response is empty, unreadable, off topic, or does both."


class RuleStatus(StrEnum):
    """Whether a rate is measurable with the rules of its scenario, as tables show it."""

    MEASURABLE = "rules"
    NOT_MEASURABLE = "rules: not measurable"  # agreement with a reader is not above chance
    NOT_VALIDATED = "rules: not validated"  # no reader has labelled such responses


TrialLoader = Callable[[str | None, int], Iterable[Trial]]
"""Maps a source (None for the embedded trials) and a seed to trials."""
ComplianceRule = Callable[[str, Trial, bool], TrialOutcome]
"""Maps a readable response, its trial, and whether the token limit ended it, to an outcome."""
TrialBuilder = Callable[[Iterable[Question]], Iterable[Trial]]
"""Builds trials on questions, in their order; it skips those on which it cannot."""
QuestionLoader = Callable[..., list[Question]]
"""Loads questions with short, checkable answers; its keyword arguments are a study's options."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Trials of over-compliance with the rule that judges them, and optionally a question set.

    `measures` says in one sentence what compliance means here; `rubric` explains the outcomes to an
    LLM judge, by default with `measures`. `agreement` is that of the rule with a reader, by kind of
    trial, or "" for all kinds; it is empty if no reader has labelled responses. A scenario with
    `questions` can also be the question set in which H-Neurons are identified. `build` makes trials
    on the questions of any study, so that a sweep can choose the questions.
    """

    name: str
    measures: str
    form: Literal["few-shot", "chat"]  # default prompt form
    trials: TrialLoader
    rule: ComplianceRule
    version: int = 3  # raise it whenever an outcome can change, also through harness.judges
    questions: QuestionLoader | None = None
    build: TrialBuilder | None = None
    rubric: Rubric | None = None
    agreement: Mapping[str, Agreement] = field(default_factory=dict)

    def agreement_of(self, kind: str = "", source: str | None = None) -> Agreement | None:
        """Return the agreement of the rule with a reader for a kind of trial.

        None if there are no labels. The labels are of embedded trials, so they say nothing about
        trials of another source; the rule for short answers does not depend on the source.
        """
        if source is not None and self.questions is None:
            return None
        return self.agreement.get(kind) or self.agreement.get("")

    def rule_status(self, kind: str = "", source: str | None = None) -> RuleStatus:
        """Return whether rates of a kind of trial are measurable with the rule."""
        agreement = self.agreement_of(kind, source)
        if agreement is None:
            return RuleStatus.NOT_VALIDATED
        return RuleStatus.MEASURABLE if agreement.is_above_chance else RuleStatus.NOT_MEASURABLE

    def load(
        self, source: str | None = None, seed: int = 0, limit: int | None = None
    ) -> list[Trial]:
        """Return the trials, shuffled by `seed`, kinds interleaved, at most `limit` of them.

        Raises HQError if the source has no trials or the limit is below 1.
        """
        trials = shuffled(_with_unique_ids(self.trials(source, seed)), seed, None)
        if not trials:
            raise HQError(
                f"{source or self.name} holds no trials that the scenario {self.name!r} can use: "
                "give a file with at least one usable row."
            )
        return _limited(_interleaved(trials), limit)

    def load_on(self, questions: Iterable[Question]) -> list[Trial]:
        """Return the trials on these questions in their order, kinds interleaved.

        There are none if the scenario cannot build trials on such questions.
        """
        built = () if self.build is None else self.build(questions)
        return _interleaved(_with_unique_ids(built))

    def judge(self, response: str, trial: Trial, truncated: bool = False) -> TrialOutcome:
        """Return the outcome of a response, reasoning removed.

        Args:
            response: The response, with reasoning if the model writes it.
            trial: The trial that it responds to.
            truncated: Whether the token limit ended the response.
        """
        answer = without_reasoning(response)
        if answer is None or not is_readable(answer):
            return TrialOutcome.UNCLEAR
        return self.rule(answer, trial, truncated)


SCENARIOS: Registry[Scenario] = Registry("scenario", "hq.scenarios")
"""Filled by `harness.scenarios`."""


RowReader = Callable[[str, str, SourceRow], Iterable[Trial]]
"""Maps a row's position (for errors), an id for its trials and the row to trials."""


def read_trials(name: str, source: str | None, read: RowReader) -> list[Trial]:
    """Return the trials of all rows of a file or hub data set.

    Raises HQError if the source or a row cannot be used.
    """
    numbered = enumerate(rows.read_rows(name, source))
    return [
        trial
        for number, (where, row) in numbered
        for trial in read(where, f"{name}:{rows.row_id(where, row, number)}", row)
    ]


def shuffled(items: Iterable[_Item], seed: int, limit: int | None) -> list[_Item]:
    """Return the items shuffled by `seed`, at most `limit` of them (None for all).

    Raises HQError if the limit is below 1.
    """
    order = list(items)
    Random(seed).shuffle(order)
    return _limited(order, limit)


def _with_unique_ids(trials: Iterable[Trial]) -> list[Trial]:
    """Trials with unique ids, duplicates removed."""
    by_id = rows.by_unique_id(list(trials), lambda t: t.id, lambda t: t.wording)
    return [replace(trial, id=id) for id, trial in by_id.items()]


def _limited(items: list[_Item], limit: int | None) -> list[_Item]:
    if limit is not None and limit < 1:
        raise HQError(f"The limit {limit} leaves no trials: set it to 1 or more, or leave it out.")
    return items[:limit]


def _interleaved(trials: Sequence[Trial]) -> list[Trial]:
    """The first trial of each kind, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for trial in trials:
        ranked.append((seen[trial.kind], trial))
        seen[trial.kind] += 1
    return [trial for _, trial in sorted(ranked, key=itemgetter(0))]
