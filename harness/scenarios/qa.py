"""Scenarios `triviaqa`, `nq` and `bioasq`: question-answer rows from JSONL, parquet or the hub.

A row needs `question`, and its answers as `aliases` or as the hub's `answer` (a mapping with
aliases in TriviaQA, a list in NQ-open).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from random import Random

from harness.judges.base import Question
from harness.judges.text import normalise
from harness.scenarios import rows
from harness.scenarios.base import Scenario
from harness.scenarios.questions import Limit, QuestionSet, question_scenario
from harness.scenarios.rows import BadRowError, Hub, SourceRow
from hq.errors import HQError


def _scenario(name: str, hub: Hub | None = None) -> Scenario:
    def load(source: str | None = None, seed: int = 0, limit: Limit = None) -> QuestionSet:
        return _load(name, hub, source, seed, limit)

    def load_file(source: str, seed: int = 0, limit: Limit = None) -> QuestionSet:
        return _load(name, None, source, seed, limit)

    return question_scenario(name, load if hub else load_file)


def _load(
    dataset: str, hub: Hub | None, source: str | None, seed: int, limit: int | None
) -> QuestionSet:
    """Return the questions of a source, shuffled by `seed`, at most `limit` of them.

    A row does not say what its question is about, so a question's entities are its normalised
    answers: they stand for the fact. Rows without a question or an answer are set aside, up to 1%
    of all rows.

    Args:
        dataset: Name of the scenario.
        hub: The official data set, used if `source` is None.
        source: A .jsonl or .parquet file, or a hub id.
        seed: Seed of the order.
        limit: The largest number of questions; None for all.
    """
    name = source or dataset
    listed = rows.read_rows(dataset, source, hub)
    questions, set_aside = rows.usable_rows(name, listed, partial(_question, dataset))
    if not questions:
        raise HQError(f"{name} holds no questions: give a file with at least one row.")
    # TriviaQA assigns one id to up to 176 different questions.
    by_id = rows.by_unique_id(questions, lambda q: q.id, lambda q: q.question)
    questions = [replace(question, id=id) for id, question in by_id.items()]
    Random(seed).shuffle(questions)
    return QuestionSet(questions[:limit], set_aside)


def _question(dataset: str, number: int, where: str, row: SourceRow) -> Question:
    text = rows.text_field(where, row, "question")
    answers = rows.require_unicode(where, _answers(row))
    aliases = tuple(dict.fromkeys(answer for answer in answers if normalise(answer)))
    if not aliases:
        raise BadRowError(f"{where} has no answers: every row needs aliases or an answer.")
    return Question(
        id=f"{dataset}:{rows.row_id(where, row, number)}",
        question=text,
        aliases=aliases,
        relation=dataset,
        entities=tuple(dict.fromkeys(normalise(alias) for alias in aliases)),
    )


def _answers(row: SourceRow) -> Iterator[str]:
    """The official answer first, if the row names one, then its aliases."""
    answer = rows.parse_literal(row.get("answer"))
    if isinstance(answer, Mapping):
        listed = (answer.get("value"), answer.get("aliases"), answer.get("normalized_aliases"))
    else:
        listed = (answer, row.get("aliases"), None)
    for value in listed:
        yield from rows.texts_of(value)


TRIVIAQA = _scenario("triviaqa", Hub("mandarjoshi/trivia_qa", "rc.nocontext", "validation"))
NQ = _scenario("nq", Hub("google-research-datasets/nq_open", None, "validation"))
BIOASQ = _scenario("bioasq")
