"""The files of a log, and reading them: LOG is appended to; LOG.000001, LOG.000002, … are full."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.serve.audit.hash_chain import ChainError, Link, verify_line
from hq.errors import HQError

_NUMBER_SUFFIX = re.compile(r"\.(\d{6,})")


@dataclass(frozen=True, slots=True)
class AuditLine:
    """The content of one line, and the end of the chain after it."""

    content: dict[str, Any]
    link: Link


def read_audit_log(path: Path) -> Iterator[AuditLine]:
    """Yield and verify every line of a log, across its files.

    Raises HQError if the log does not exist, and ChainError with file and line number at the first
    line that does not fit.
    """
    files = log_files(path) if path.parent.is_dir() else []
    if not files:
        raise HQError(f"There is no audit log {path}: name the file that `hq serve --audit` wrote.")
    link = Link()
    for file in files:
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    content, link = verify_line(line, link)
                except ChainError as error:
                    raise ChainError(f"{file}, line {number}: {error}.") from error
                yield AuditLine(content, link)


def log_files(path: Path) -> list[Path]:
    """Return the existing files of a log, the oldest first."""
    full_files = [file for _, file in _numbered_files(path)]
    return [*full_files, *([path] if path.exists() else [])]


def next_full_file(path: Path) -> Path:
    """Return the name to which the current file is renamed when it is full."""
    last = max((number for number, _ in _numbered_files(path)), default=0)
    return path.with_name(f"{path.name}.{last + 1:06}")


def _numbered_files(path: Path) -> list[tuple[int, Path]]:
    numbered = []
    for file in path.parent.iterdir():
        suffix = _NUMBER_SUFFIX.fullmatch(file.name.removeprefix(path.name))
        if suffix is not None and file.name.startswith(path.name):
            numbered.append((int(suffix[1]), file))
    return sorted(numbered)
