"""Scenarios: what to ask a model, and the rule that says whether a response complies."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import itemgetter
from random import Random
from typing import Literal, TypeVar

from harness.judges.base import Question
from harness.judges.responses import is_readable, without_reasoning
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

    @property
    def wording(self) -> str:
        """Everything that the model is asked."""
        return f"{self.first}\n{self.prompt}"


def as_question(trial: Trial, wording: str) -> Question:
    """Return the trial as a question with this wording, for the rule judge of answers."""
    return Question(trial.id, wording, trial.aliases, trial.kind, trial.entities, trial.targets)


class TrialOutcome(StrEnum):
    """What a response to a trial did."""

    COMPLIED = "complied"
    RESISTED = "resisted"
    UNCLEAR = "unclear"  # empty, truncated too early, unreadable or contradictory


TrialLoader = Callable[[str | None, int], Iterable[Trial]]
"""Maps a source (None for the embedded trials) and a seed to trials."""
ComplianceRule = Callable[[str, Trial, bool], TrialOutcome]
"""Maps a readable response, its trial, and whether the token limit ended it, to an outcome."""
QuestionLoader = Callable[..., list[Question]]
"""Loads questions with short, checkable answers; its keyword arguments are a study's options."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Trials of over-compliance with the rule that judges them, and optionally a question set.

    `measures` says in one sentence what compliance means here. A scenario with `questions` can
    also be the question set in which H-Neurons are identified.
    """

    name: str
    measures: str
    form: Literal["few-shot", "chat"]  # default prompt form
    trials: TrialLoader
    rule: ComplianceRule
    version: int = 3  # raise it whenever an outcome can change, also through harness.judges
    questions: QuestionLoader | None = None

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
