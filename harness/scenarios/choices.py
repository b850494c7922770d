"""Multiple-choice questions in the form of MMLU: they measure what scaling costs a model.

Embedded: facts with three of their wrong answers. A file has rows `id, question, choices, answer`,
where `answer` is the index of the right choice, from 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from harness.judges.base import Question
from harness.scenarios import rows
from harness.scenarios.base import shuffled
from harness.scenarios.facts.statements import sampled_facts
from harness.scenarios.rows import SourceRow
from hq.errors import HQError

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """A question with four options; `answer` is the index of the right one."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    entities: tuple[str, ...]

    @property
    def wording(self) -> str:
        """The question without its options."""
        return self.question


def load_choices(
    source: str | None = None, seed: int = 0, limit: int | None = None
) -> list[MultipleChoice]:
    """Return questions shuffled by `seed`, at most `limit` of them.

    Raises HQError if the source, a row or the limit cannot be used, or there is no question.
    """
    listed = list(_embedded(seed) if source is None else _read_file(source))
    if not listed:
        raise HQError(f"{source} holds no questions: give a file with at least one row.")
    by_id = rows.by_unique_id(listed, lambda c: c.id, prompt)
    return shuffled((replace(choice, id=id) for id, choice in by_id.items()), seed, limit)


def prompt(choice: MultipleChoice) -> str:
    """Return the question, its lettered options, and the cue that the letter follows."""
    options = (f"{letter}. {text}" for letter, text in zip(LETTERS, choice.options, strict=True))
    return "\n".join((choice.question, *options, "Answer:"))


def _embedded(seed: int) -> Iterator[MultipleChoice]:
    wrong = len(LETTERS) - 1
    return (_of_fact(fact, seed) for fact in sampled_facts(seed) if len(fact.distractors) >= wrong)


def _of_fact(fact: Question, seed: int) -> MultipleChoice:
    random = Random(f"{seed}:{fact.id}")
    right = fact.aliases[0]
    options = [right, *random.sample(fact.distractors, len(LETTERS) - 1)]
    random.shuffle(options)
    return MultipleChoice(
        f"choices:{fact.id}", fact.question, tuple(options), options.index(right), fact.entities
    )


def _read_file(source: str) -> Iterator[MultipleChoice]:
    for number, (where, row) in enumerate(rows.read_rows("choices", source)):
        yield _of_row(where, f"choices:{rows.row_id(where, row, number)}", row)


def _options(row: SourceRow) -> Iterator[str]:
    choices = rows.parse_literal(row.get("choices"))
    for choice in choices if isinstance(choices, list | tuple) else ():
        yield from list(rows.texts_of(choice))[:1]


def _of_row(where: str, id: str, row: SourceRow) -> MultipleChoice:
    question = rows.text_field(where, row, "question")
    options = rows.require_unicode(where, _options(row))
    if len(options) != len(LETTERS):
        raise HQError(f"{where} has no four choices: every row needs a list of four texts.")
    answer = row.get("answer")
    if not isinstance(answer, int) or answer not in range(len(LETTERS)):
        raise HQError(
            f"{where} has no answer: every row needs the index of the right choice, 0 to 3."
        )
    return MultipleChoice(id, question, options, answer, (id,))
