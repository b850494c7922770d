"""Multiple-choice questions as MMLU has them: what a model can do, beside what it complies with.

Embedded: facts with three of their wrong answers. A file has rows `id, question, choices, answer`,
the answer as a position from 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from harness.judges.base import Question
from harness.scenarios import rows
from harness.scenarios.rows import SourceRow
from harness.scenarios.statements import sample
from harness.scenarios.trials import draw
from hq.errors import HQError

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with four options; `answer` is the position of the right one."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    entities: tuple[str, ...]

    @property
    def wording(self) -> str:
        """What is asked, without the options."""
        return self.question


def load(source: str | None = None, seed: int = 0, limit: int | None = None) -> list[Choice]:
    """Questions in an order drawn by `seed`, cut at `limit`.

    Raises HQError for a bad source, row or limit, and for a source without questions.
    """
    found = list(_embedded(seed) if source is None else _read(source))
    if not found:
        raise HQError(f"{source} holds no questions: give a file with at least one row.")
    apart = rows.told_apart(found, lambda c: c.id, prompt)
    return draw((replace(choice, id=id) for id, choice in apart.items()), seed, limit)


def prompt(choice: Choice) -> str:
    """The question, its options by letter, and the word that the letter follows."""
    listed = (f"{letter}. {text}" for letter, text in zip(LETTERS, choice.options, strict=True))
    return "\n".join((choice.question, *listed, "Answer:"))


def _embedded(seed: int) -> Iterator[Choice]:
    wrong = len(LETTERS) - 1
    return (_of_fact(fact, seed) for fact in sample(seed) if len(fact.distractors) >= wrong)


def _of_fact(fact: Question, seed: int) -> Choice:
    lots = Random(f"{seed}:{fact.id}")
    right = fact.aliases[0]
    options = [right, *lots.sample(fact.distractors, len(LETTERS) - 1)]
    lots.shuffle(options)
    return Choice(
        f"choices:{fact.id}", fact.question, tuple(options), options.index(right), fact.entities
    )


def _read(source: str) -> Iterator[Choice]:
    for number, (where, row) in enumerate(rows.read("choices", source)):
        yield _of_row(where, f"choices:{rows.identity(where, row, number)}", row)


def _options(row: SourceRow) -> Iterator[str]:
    """The choices, each of them one text."""
    choices = rows.parsed(row.get("choices"))
    for choice in choices if isinstance(choices, list | tuple) else ():
        yield from list(rows.texts(choice))[:1]


def _of_row(where: str, id: str, row: SourceRow) -> Choice:
    question = rows.text(where, row, "question")
    options = rows.whole(where, _options(row))
    if len(options) != len(LETTERS):
        raise HQError(f"{where} has no four choices: every row needs a list of four texts.")
    answer = row.get("answer")
    if not isinstance(answer, int) or answer not in range(len(LETTERS)):
        raise HQError(
            f"{where} has no answer: every row needs the right choice's position, 0 to 3."
        )
    return Choice(id, question, options, answer, (id,))
