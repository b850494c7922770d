"""Scenarios `triviaqa`, `nq` and `bioasq`: question-answer rows from JSONL, parquet or the hub.

A row needs a question and its answers: `aliases`, or `answer` as the hub has it (TriviaQA's
mapping of aliases, or NQ-open's list).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from random import Random

from harness.judges.base import Question
from harness.judges.text import normalise
from harness.scenarios import rows
from harness.scenarios.base import Limit, Questions, register
from harness.scenarios.rows import BadRowError, Hub, SourceRow
from hq.errors import HQError

HUB: dict[str, Hub] = {
    "triviaqa": Hub("mandarjoshi/trivia_qa", "rc.nocontext", "validation"),
    "nq": Hub("google-research-datasets/nq_open", None, "validation"),
}


def _load(
    dataset: str, source: str | None = None, seed: int = 0, limit: int | None = None
) -> Questions:
    """Questions of `source`: a .jsonl or .parquet file, or a hub id (default: the official one).

    Rows without a question or an answer are set aside, up to 1% of them.

    The order is drawn by `seed`, then cut at `limit`. A question's entities are its normalised
    answers, so no answer is asked for on two sides of a split.
    """
    read = rows.read(dataset, source, HUB.get(dataset))
    name = source or dataset
    questions, left = rows.usable(name, read, partial(_question, dataset))
    if not questions:
        raise HQError(f"{name} holds no questions: give a file with at least one row.")
    # TriviaQA gives one id to up to 176 different questions.
    apart = rows.told_apart(questions, lambda q: q.id, lambda q: q.question)
    questions = [replace(question, id=id) for id, question in apart.items()]
    Random(seed).shuffle(questions)
    return Questions(questions[:limit], left)


def _bind(dataset: str) -> None:
    def loader(source: str | None = None, seed: int = 0, limit: Limit = None) -> Questions:
        return _load(dataset, source, seed, limit)

    register(dataset)(loader)


for _name in ("triviaqa", "nq", "bioasq"):
    _bind(_name)


def _question(dataset: str, number: int, where: str, row: SourceRow) -> Question:
    text = rows.text(where, row, "question")
    answers = rows.whole(where, _answers(row))
    aliases = tuple(dict.fromkeys(answer for answer in answers if normalise(answer)))
    if not aliases:
        raise BadRowError(f"{where} has no answers: every row needs aliases, or an answer.")
    return Question(
        id=f"{dataset}:{rows.identity(where, row, number)}",
        question=text,
        aliases=aliases,
        relation=dataset,
        entities=tuple(dict.fromkeys(normalise(alias) for alias in aliases)),
    )


def _answers(row: SourceRow) -> Iterator[str]:
    """The official answer first where the row names one, then its aliases."""
    answer = rows.parsed(row.get("answer"))
    if isinstance(answer, Mapping):
        listed = (answer.get("value"), answer.get("aliases"), answer.get("normalized_aliases"))
    else:
        listed = (answer, row.get("aliases"), None)
    for given in listed:
        yield from rows.texts(given)
