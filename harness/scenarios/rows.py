"""Rows of a data set: a JSONL or parquet file, or a data set of the hub.

Every row comes with the words that name its place in an error.
"""

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

from hq.errors import HQError, first_line

T = TypeVar("T")
SourceRow = Mapping[str, Any]


class Hub(NamedTuple):
    """Where a data set lies on the hub."""

    id: str
    config: str | None
    split: str


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TOLERATED = 0.01  # share of the rows that may be left out
_BRACKETS = {("[", "]"), ("(", ")"), ("{", "}")}
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID_FIELDS = ("id", "question_id")


def read(name: str, source: str | None, hub: Hub | None = None) -> Iterable[tuple[str, SourceRow]]:
    """Rows of `source`: a .jsonl or .parquet file, or a hub id (default: `hub`).

    Raises HQError, about the scenario `name`, for a source that is none of them or is broken.
    """
    if source is None:
        if hub is None:
            raise HQError(f"Scenario {name!r} needs a file: set source to a .jsonl or .parquet.")
        return _hub_rows(hub)
    path = Path(source).expanduser()
    reader = _READERS.get(path.suffix)
    if path.is_file():
        if reader is None:
            raise HQError(f"{source} is not a .jsonl or .parquet file: convert it to one of them.")
        return reader(path)
    if reader is None and _HUB_ID.fullmatch(source) and not path.exists():
        return _hub_rows(Hub(source, hub.config if hub else None, "validation"))
    raise HQError(f"There is no file {source}: set the scenario's source to an existing one.")


class BadRowError(HQError):
    """A row that cannot be used."""


class SetAside(NamedTuple):
    """A row that was left out, and why."""

    row: str
    reason: str


def usable(
    name: str, found: Iterable[tuple[str, SourceRow]], read: Callable[[int, str, SourceRow], T]
) -> tuple[list[T], list[SetAside]]:
    """What `read` makes of each row, and the rows of which it makes nothing (BadRowError).

    Raises HQError where those are more than 1% of the rows.
    """
    kept: list[T] = []
    left: list[SetAside] = []
    first = ""
    for number, (where, row) in enumerate(found):
        try:
            kept.append(read(number, where, row))
        except BadRowError as error:
            first = first or str(error)
            place = " ".join(where.split()[-2:])  # a table says nothing of the file's folder
            left.append(SetAside(place, str(error).removeprefix(f"{where} ")))
    if len(left) > _TOLERATED * (len(kept) + len(left)):
        raise HQError(
            f"{len(left)} of the {len(kept) + len(left)} rows of {name} cannot be used, more than "
            f"{_TOLERATED:.0%}; the first: {first}"
        )
    return kept, left


def text(where: str, row: SourceRow, field: str) -> str:
    """The row's text in `field`; BadRowError where it has none."""
    given = row.get(field)
    if not isinstance(given, str) or not given.strip():
        raise BadRowError(f"{where} has no {field}: every row needs a text in the field {field}.")
    return _whole(where, given).strip()


def texts(given: object) -> Iterator[str]:
    """The texts of a field that holds one or a list of them, numbers and booleans as text.

    A list may itself stand in a text, as JSON or as Python writes it.
    """
    given = parsed(given)
    if isinstance(given, list | tuple):
        for one in given:
            yield from _texts_of(one)
    else:
        yield from _texts_of(given)


def parsed(given: object) -> object:
    """What a text stands for that is a list or an object in JSON or Python; else what is given."""
    if not isinstance(given, str) or (given.strip()[:1], given.strip()[-1:]) not in _BRACKETS:
        return given
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(given.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return given


def _texts_of(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool):
        yield from ("true", "yes") if value else ("false", "no")
    elif isinstance(value, int | Decimal | date) or (
        isinstance(value, float) and math.isfinite(value)
    ):
        yield str(value)


def _whole(where: str, text: str) -> str:
    """The text; BadRowError where half of a surrogate pair stands in it, which no file can hold."""
    if _SURROGATE.search(text):
        raise BadRowError(f"{where} has a lone surrogate in {text[:60]!a}: repair its Unicode.")
    return text


def whole(where: str, texts: Iterable[str]) -> tuple[str, ...]:
    """The texts in their order; BadRowError where one of them is broken Unicode."""
    return tuple(_whole(where, text) for text in texts)


def identity(where: str, row: SourceRow, number: int) -> str:
    """The row's own id, or its number; BadRowError for an id that is broken Unicode."""
    own = next((str(row[field]) for field in _ID_FIELDS if _is_given(row.get(field))), str(number))
    return _whole(where, own)


def _is_given(id: object) -> bool:
    return id is not None and id != ""


def told_apart(
    items: Sequence[T], identity: Callable[[T], str], wording: Callable[[T], str]
) -> dict[str, T]:
    """The items by ids of their own, in their order.

    An id that different wordings share gets a digest of the wording behind it; an item that stands
    twice is kept once.
    """
    kept = {(identity(item), wording(item)): item for item in reversed(items)}
    count = Counter(id for id, _ in kept)
    return {
        f"{id}~{_digest(words)}" if count[id] > 1 else id: item
        for (id, words), item in reversed(kept.items())
    }


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _jsonl_rows(path: Path) -> Iterator[tuple[str, SourceRow]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path} line {number}", _parse(line, f"{path} line {number}")


def _parse(line: bytes, where: str) -> SourceRow:
    try:
        row = json.loads(line)
    except ValueError as error:  # no JSON, or no text
        raise HQError(f"{where} is not valid JSON ({error}): fix or remove it.") from error
    if not isinstance(row, dict):
        raise HQError(f"{where} is not a JSON object: write one object a line.")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, SourceRow]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise HQError(f"{path} cannot be read as parquet ({error}): write it again.") from error
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        yield f"{path} row {number}", row


_READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _hub_rows(hub: Hub) -> Iterator[tuple[str, SourceRow]]:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise HQError(
            f"Reading {hub.id} from the hub needs the package datasets: "
            "pip install 'hq[datasets]', or set source to a .jsonl or .parquet file."
        ) from error
    try:
        rows = load_dataset(hub.id, hub.config, split=hub.split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise HQError(
            f"The data set {hub.id} cannot be read from the hub ({first_line(error)}): check its "
            "id, or set source to a .jsonl or .parquet file."
        ) from error
    return ((f"{hub.id} row {number}", row) for number, row in enumerate(rows, start=1))
