"""Logs with one JSON record per line, appended at once: a kill loses at most the last line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

LOG_FILE = "log.jsonl"  # in the folder of a growing log
Record = TypeVar("Record", bound=BaseModel)


def append(path: Path, records: Sequence[BaseModel]) -> None:
    """Append records to a log."""
    with open(path, "a", encoding="utf-8", newline="\n") as stream:
        stream.write("".join(record.model_dump_json() + "\n" for record in records))


def read_log(path: Path, kind: type[Record]) -> list[Record]:
    """Return the records of a log, after removing a last line that a kill left incomplete."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)
    return parse(content[:complete].decode(), kind)


def parse(text: str, kind: type[Record]) -> list[Record]:
    """Return the records of complete lines."""
    return [kind.model_validate_json(line) for line in text.split("\n")[:-1]]
