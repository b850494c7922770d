"""The audit log as it is read: every line in order, across its files, each checked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.serve.chain import ChainError, Link, linked
from harness.serve.logfiles import all_files
from hq.errors import HQError


@dataclass(frozen=True, slots=True)
class Line:
    """One line, and where the chain stands with it."""

    content: dict[str, Any]
    link: Link


def trail(path: Path) -> Iterator[Line]:
    """Every line of a log.

    Raises HQError where there is none, and ChainError, with file and line, at the first that does
    not fit.
    """
    files = all_files(path) if path.parent.is_dir() else []
    if not files:
        raise HQError(f"There is no audit log {path}: name the file that `hq serve --audit` wrote.")
    link = Link()
    for file in files:
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    content, link = linked(line, link)
                except ChainError as error:
                    raise ChainError(f"{file}, line {number}: {error}.") from error
                yield Line(content, link)
