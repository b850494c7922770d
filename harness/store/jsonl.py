"""Logs: a JSON record a line, appended as it comes, so that a kill costs the last line at most."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

Record = TypeVar("Record", bound=BaseModel)


def append(path: Path, records: Sequence[BaseModel]) -> None:
    """Adds records at the end of a log."""
    with open(path, "a", encoding="utf-8", newline="\n") as stream:
        stream.write("".join(record.model_dump_json() + "\n" for record in records))


def read_log(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a log; a last line that a kill cut off is taken off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return parse(content[:whole].decode(), kind)


def parse(text: str, kind: type[Record]) -> list[Record]:
    """The records of whole lines."""
    return [kind.model_validate_json(line) for line in text.split("\n")[:-1]]
