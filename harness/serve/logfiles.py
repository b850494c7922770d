"""The files of one log: the one that grows, and the full ones before it, LOG.000001 and so on."""

import re
from pathlib import Path

_NUMBER = re.compile(r"\.(\d{6,})")


def full_files(path: Path) -> list[Path]:
    """The full files of a log, the oldest first."""
    return [file for _, file in _numbered(path)]


def next_full(path: Path) -> Path:
    """The name that the growing file gets when it is full."""
    last = max((number for number, _ in _numbered(path)), default=0)
    return path.with_name(f"{path.name}.{last + 1:06}")


def all_files(path: Path) -> list[Path]:
    """The full files and the growing one, where they are."""
    return [*full_files(path), *([path] if path.exists() else [])]


def _numbered(path: Path) -> list[tuple[int, Path]]:
    found = []
    for file in path.parent.iterdir():
        number = _NUMBER.fullmatch(file.name.removeprefix(path.name))
        if number is not None and file.name.startswith(path.name):
            found.append((int(number[1]), file))
    return sorted(found)
