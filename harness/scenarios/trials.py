"""What a scenario of over-compliance is: prompts that tempt a model, and a judge of compliance."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import itemgetter
from random import Random
from typing import Literal, TypeVar

from harness.judges.answers import without_reasoning
from harness.judges.base import Question
from harness.judges.reading import is_readable
from harness.scenarios import rows
from harness.scenarios.rows import SourceRow
from hq.errors import HQError
from hq.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Trial:
    """One prompt that tempts a model to comply, and what tells compliance from resistance."""

    id: str
    prompt: str  # the user's last message
    entities: tuple[str, ...]  # what independent trials must not share
    kind: str = ""  # stratum inside the scenario: "suggestion", "forbidden"
    aliases: tuple[str, ...] = ()  # right answers
    targets: tuple[str, ...] = ()  # answers that only compliance gives
    # A question that the model must answer rightly, with `aliases`, before the trial counts; in a
    # dialogue it is also the first turn.
    first: str = ""
    dialogue: bool = False  # whether `prompt` follows the model's own answer to `first`

    @property
    def wording(self) -> str:
        """All that the model is asked."""
        return f"{self.first}\n{self.prompt}"


def as_question(trial: Trial, asked: str) -> Question:
    """What the rule judge of answers needs of a trial in which this was asked."""
    return Question(trial.id, asked, trial.aliases, trial.kind, trial.entities, trial.targets)


class Outcome(StrEnum):
    """What a response did."""

    COMPLIED = "complied"
    RESISTED = "resisted"
    UNCLEAR = "unclear"  # empty, cut off before it shows, garbled, or of two minds


Source = Callable[[str | None, int], Iterable[Trial]]
"""The trials of a source, None for the embedded ones, as a seed draws them."""
TrialRule = Callable[[str, Trial, bool], Outcome]
"""The outcome of a readable response; the flag says that the token limit ended it."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A scenario of over-compliance. `measures` says in a sentence what compliance means here."""

    name: str
    measures: str
    form: Literal["few-shot", "chat"]  # the default prompt form
    trials: Source
    rule: TrialRule
    version: int = 3  # raised with every change of a verdict: of the rule, or what it is built on

    def load(
        self, source: str | None = None, seed: int = 0, limit: int | None = None
    ) -> list[Trial]:
        """Trials in an order drawn by `seed`, then cut at `limit`, the kinds taking turns.

        Raises HQError for a source without trials and for a limit below 1.
        """
        drawn = draw(named_once(self.trials(source, seed)), seed, None)
        if not drawn:
            raise HQError(
                f"{source or self.name} holds no trials that the scenario {self.name!r} can use: "
                "give a file with at least one row."
            )
        return cut(_in_turns(drawn), limit)

    def judge(self, response: str, trial: Trial, truncated: bool = False) -> Outcome:
        """What the response did after its reasoning; `truncated`: the token limit ended it."""
        told = without_reasoning(response)
        if told is None or not is_readable(told):
            return Outcome.UNCLEAR
        return self.rule(told, trial, truncated)


BEHAVIOURS: Registry[Behaviour] = Registry(
    "scenario of over-compliance", "hq.scenarios", lambda thing: isinstance(thing, Behaviour)
)


def enter(behaviour: Behaviour) -> None:
    """Enter the behaviour in the registry, under its name."""
    BEHAVIOURS.add(behaviour.name, behaviour)


Reader = Callable[[str, str, SourceRow], Iterable[Trial]]
"""The trials of a row: the place of the row for an error, an id for the trials, the row."""


def read_trials(name: str, source: str | None, read: Reader) -> list[Trial]:
    """The trials of the rows of a file or hub id. Raises HQError for a bad source or row."""
    numbered = enumerate(rows.read(name, source))
    return [
        trial
        for number, (where, row) in numbered
        for trial in read(where, f"{name}:{rows.identity(where, row, number)}", row)
    ]


def named_once(trials: Iterable[Trial]) -> list[Trial]:
    """The trials with ids of their own; one that stands twice is kept once."""
    apart = rows.told_apart(list(trials), lambda t: t.id, lambda t: f"{t.first}\n{t.prompt}")
    return [replace(trial, id=id) for id, trial in apart.items()]


def draw(items: Iterable[T], seed: int, limit: int | None) -> list[T]:
    """The items in an order drawn by `seed`, cut at `limit`."""
    drawn = list(items)
    Random(seed).shuffle(drawn)
    return cut(drawn, limit)


def cut(items: list[T], limit: int | None) -> list[T]:
    """The first `limit` items, None for all; HQError for a limit below 1."""
    if limit is not None and limit < 1:
        raise HQError(f"The limit {limit} leaves no trials: set it to 1 or more, or leave it out.")
    return items[:limit]


def _in_turns(trials: Sequence[Trial]) -> list[Trial]:
    """The first trial of each kind, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for trial in trials:
        ranked.append((seen[trial.kind], trial))
        seen[trial.kind] += 1
    return [trial for _, trial in sorted(ranked, key=itemgetter(0))]
