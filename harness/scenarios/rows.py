"""Rows of a JSONL file, a parquet file or a hub data set, and their fields as checked text.

Every row comes with a description of its position ("x.jsonl line 3") for error messages.
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

_Item = TypeVar("_Item")
SourceRow = Mapping[str, Any]


class Hub(NamedTuple):
    """A data set on the Hugging Face hub."""

    id: str
    config: str | None
    split: str


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_SET_ASIDE = 0.01  # share of the rows
_BRACKETS = {("[", "]"), ("(", ")"), ("{", "}")}
_SURROGATE = re.compile("[\ud800-\udfff]")
_ID_FIELDS = ("id", "question_id")


def read_rows(
    name: str, source: str | None, hub: Hub | None = None
) -> Iterable[tuple[str, SourceRow]]:
    """Yield the position and the content of every row of a source.

    Args:
        name: Name of the scenario, for error messages.
        source: A .jsonl or .parquet file, or a hub id; None for `hub`.
        hub: The scenario's official data set, if it has one.

    Raises:
        HQError: If the source does not exist, has another format, or cannot be parsed.
    """
    if source is None:
        if hub is None:
            raise HQError(
                f"The scenario {name!r} needs a file: set source to a .jsonl or .parquet file."
            )
        return _hub_rows(hub)
    path = Path(source).expanduser()
    reader = _READERS.get(path.suffix)
    if path.is_file():
        if reader is None:
            raise HQError(f"{source} is not a .jsonl or .parquet file: convert it to one of them.")
        return reader(path)
    if is_hub_id(source):
        return _hub_rows(Hub(source, hub.config if hub else None, "validation"))
    raise HQError(f"There is no file {source}: set the scenario's source to an existing one.")


def is_hub_id(source: str) -> bool:
    """Return whether a source can only be a data set of the hub: owner/name, and no path."""
    path = Path(source).expanduser()
    return path.suffix not in _READERS and bool(_HUB_ID.fullmatch(source)) and not path.exists()


class BadRowError(HQError):
    """A row cannot be used."""


class SetAside(NamedTuple):
    """A row that is not used, and the reason."""

    row: str
    reason: str


def usable_rows(
    name: str,
    listed: Iterable[tuple[str, SourceRow]],
    read: Callable[[int, str, SourceRow], _Item],
) -> tuple[list[_Item], list[SetAside]]:
    """Return `read(number, where, row)` for each row, and the rows for which it fails.

    Raises HQError if `read` raises BadRowError for more than 1% of the rows.
    """
    usable: list[_Item] = []
    set_aside: list[SetAside] = []
    first = ""
    for number, (where, row) in enumerate(listed):
        try:
            usable.append(read(number, where, row))
        except BadRowError as error:
            first = first or str(error)
            position = " ".join(where.split()[-2:])  # without the file's folder
            set_aside.append(SetAside(position, str(error).removeprefix(f"{where} ")))
    total = len(usable) + len(set_aside)
    if len(set_aside) > _MAX_SET_ASIDE * total:
        raise HQError(
            f"{len(set_aside)} of the {total} rows of {name} cannot be used, more than "
            f"{_MAX_SET_ASIDE:.0%}; the first: {first}"
        )
    return usable, set_aside


def text_field(where: str, row: SourceRow, field: str) -> str:
    """Return the row's text in `field`, stripped. Raises BadRowError if there is none."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise BadRowError(f"{where} has no {field}: every row needs a text in the field {field}.")
    return _require_unicode(where, value).strip()


def texts_of(value: object) -> Iterator[str]:
    """Yield the texts of a field with one value or a list; numbers and booleans become text.

    The list may be written as a text, in JSON or in Python's syntax.
    """
    value = parse_literal(value)
    if isinstance(value, list | tuple):
        for item in value:
            yield from _as_texts(item)
    else:
        yield from _as_texts(value)


def parse_literal(value: object) -> object:
    """Parse a text that is a list or an object in JSON or Python; return other values as is."""
    if not isinstance(value, str) or (value.strip()[:1], value.strip()[-1:]) not in _BRACKETS:
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def _as_texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool):
        yield from ("true", "yes") if value else ("false", "no")
    elif isinstance(value, int | Decimal | date) or (
        isinstance(value, float) and math.isfinite(value)
    ):
        yield str(value)


def require_unicode(where: str, texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts as a tuple. Raises BadRowError if one of them is not valid Unicode."""
    return tuple(_require_unicode(where, text) for text in texts)


def _require_unicode(where: str, text: str) -> str:
    if _SURROGATE.search(text):  # half of a pair, which UTF-8 cannot encode
        raise BadRowError(f"{where} has a lone surrogate in {text[:60]!a}: repair its Unicode.")
    return text


def row_id(where: str, row: SourceRow, number: int) -> str:
    """Return the row's own id or, without one, its number.

    Raises BadRowError if the id is not valid Unicode.
    """
    ids = (row.get(field) for field in _ID_FIELDS)
    own = next((str(id) for id in ids if id is not None and id != ""), str(number))
    return _require_unicode(where, own)


def by_unique_id(
    items: Sequence[_Item], identity: Callable[[_Item], str], wording: Callable[[_Item], str]
) -> dict[str, _Item]:
    """Return the items by unique ids, in order, duplicates removed.

    An id that items of different wording share is extended by a digest of the wording.
    """
    distinct = {(identity(item), wording(item)): item for item in reversed(items)}
    count = Counter(id for id, _ in distinct)
    return {
        f"{id}~{_digest(words)}" if count[id] > 1 else id: item
        for (id, words), item in reversed(distinct.items())
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
    except ValueError as error:  # not JSON, or not UTF-8
        raise HQError(f"{where} is not valid JSON ({error}): fix or remove it.") from error
    if not isinstance(row, dict):
        raise HQError(f"{where} is not a JSON object: write one object per line.")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, SourceRow]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise HQError(f"{path} cannot be read as parquet ({error}): export it again.") from error
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
