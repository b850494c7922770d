"""Rows of a data set: a JSONL or parquet file, or a data set of the hub.

Every row comes with the words that name its place in an error.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

from hq.checkpoint import first_line
from hq.errors import HQError

T = TypeVar("T")
Row = Mapping[str, Any]


class Hub(NamedTuple):
    """Where a data set lies on the hub."""

    id: str
    config: str | None
    split: str


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ID_FIELDS = ("id", "question_id")


def read(name: str, source: str | None, hub: Hub | None = None) -> Iterable[tuple[str, Row]]:
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


def text(where: str, row: Row, field: str) -> str:
    """The row's text in `field`; HQError where it has none."""
    given = row.get(field)
    if not isinstance(given, str) or not given.strip():
        raise HQError(f"{where} has no {field}: every row needs a text in the field {field}.")
    return given.strip()


def texts(given: object) -> Iterator[str]:
    """The texts of a field that holds one of them, or a list."""
    if isinstance(given, str):
        yield given
    elif isinstance(given, list | tuple):
        yield from (text for text in given if isinstance(text, str))


def identity(row: Row, number: int) -> str:
    """The row's own id, or its number."""
    return next((str(row[field]) for field in _ID_FIELDS if row.get(field)), str(number))


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
