"""Scenarios `triviaqa`, `nq` and `bioasq`: question-answer rows from JSONL, parquet or the hub.

A row needs a question and its answers: `aliases`, or `answer` as the hub has it (TriviaQA's
mapping of aliases, or NQ-open's list).
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import polars as pl

from harness.scenarios.base import Limit, Question, register
from harness.text import normalise
from hq.checkpoint import first_line
from hq.errors import HQError

Row = Mapping[str, Any]


class Hub(NamedTuple):
    """Where a data set lies on the hub."""

    id: str
    config: str | None
    split: str


HUB: dict[str, Hub] = {
    "triviaqa": Hub("mandarjoshi/trivia_qa", "rc.nocontext", "validation"),
    "nq": Hub("google-research-datasets/nq_open", None, "validation"),
}

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ID_FIELDS = ("id", "question_id")


def _load(
    dataset: str, source: str | None = None, seed: int = 0, limit: int | None = None
) -> list[Question]:
    """Questions of `source`: a .jsonl or .parquet file, or a hub id (default: the official one).

    The order is drawn by `seed`, then cut at `limit`. A question's entities are its normalised
    answers, so no answer is asked for on two sides of a split.
    """
    rows = _rows(dataset, source)
    questions = [_question(dataset, number, where, row) for number, (where, row) in enumerate(rows)]
    if not questions:
        raise HQError(f"{source or dataset} holds no questions: give a file with at least one row.")
    questions = _told_apart(questions)
    Random(seed).shuffle(questions)
    return questions[:limit]


def _bind(dataset: str) -> None:
    def loader(source: str | None = None, seed: int = 0, limit: Limit = None) -> list[Question]:
        return _load(dataset, source, seed, limit)

    register(dataset)(loader)


for _name in ("triviaqa", "nq", "bioasq"):
    _bind(_name)


def _rows(dataset: str, source: str | None) -> Iterable[tuple[str, Row]]:
    """Rows, each with the words that name its place in an error."""
    if source is None:
        if dataset not in HUB:
            raise HQError(f"Scenario {dataset!r} needs a file: set source to a .jsonl or .parquet.")
        return _hub_rows(HUB[dataset])
    path = Path(source).expanduser()
    reader = _READERS.get(path.suffix)
    if path.is_file():
        if reader is None:
            raise HQError(f"{source} is not a .jsonl or .parquet file: convert it to one of them.")
        return reader(path)
    if reader is None and _HUB_ID.fullmatch(source) and not path.exists():
        known = HUB.get(dataset)
        return _hub_rows(Hub(source, known.config if known else None, "validation"))
    raise HQError(f"There is no file {source}: set the scenario's source to an existing one.")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path} line {number}", _parse(line, f"{path} line {number}")


def _parse(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:  # no JSON, or no text
        raise HQError(f"{where} is not valid JSON ({error}): fix or remove it.") from error
    if not isinstance(row, dict):
        raise HQError(f"{where} is not a JSON object: write one object a line.")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise HQError(f"{path} cannot be read as parquet ({error}): write it again.") from error
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        yield f"{path} row {number}", row


_READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _hub_rows(hub: Hub) -> Iterator[tuple[str, Row]]:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise HQError(
            f"Reading {hub.id} from the hub needs the package datasets: "
            "`pip install datasets`, or set source to a .jsonl or .parquet file."
        ) from error
    try:
        rows = load_dataset(hub.id, hub.config, split=hub.split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise HQError(
            f"The data set {hub.id} cannot be read from the hub ({first_line(error)}): check its "
            "id, or set source to a .jsonl or .parquet file."
        ) from error
    return ((f"{hub.id} row {number}", row) for number, row in enumerate(rows, start=1))


def _question(dataset: str, number: int, where: str, row: Row) -> Question:
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise HQError(f"{where} has no question: every row needs a text in the field question.")
    aliases = tuple(dict.fromkeys(a for a in _answers(row) if normalise(a)))
    if not aliases:
        raise HQError(f"{where} has no answers: every row needs aliases, or an answer.")
    identity = next((str(row[field]) for field in _ID_FIELDS if row.get(field)), str(number))
    return Question(
        id=f"{dataset}:{identity}",
        question=text.strip(),
        aliases=aliases,
        relation=dataset,
        entities=tuple(dict.fromkeys(normalise(alias) for alias in aliases)),
    )


def _answers(row: Row) -> Iterator[str]:
    """The official answer first where the row names one, then its aliases."""
    answer = row.get("answer")
    if isinstance(answer, Mapping):
        listed = (answer.get("value"), answer.get("aliases"), answer.get("normalized_aliases"))
    else:
        listed = (answer, row.get("aliases"), None)
    for given in listed:
        yield from _texts(given)


def _texts(given: object) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, list | tuple):
        yield from (text for text in given if isinstance(text, str))


def _told_apart(questions: list[Question]) -> list[Question]:
    """Questions with ids of their own: TriviaQA gives one id to up to 176 different questions.

    A shared id gets a digest of the question behind it; a row that stands twice is kept once.
    """
    rows = {(q.id, q.question): q for q in reversed(questions)}
    shared = {id for id, count in Counter(q.id for q in rows.values()).items() if count > 1}
    return [
        replace(q, id=f"{q.id}~{_digest(q.question)}") if q.id in shared else q
        for q in reversed(rows.values())
    ]


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()
