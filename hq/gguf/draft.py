"""A file that is written under another name and takes its own when it is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft(into: Path) -> Iterator[Path]:
    """A name beside `into` to write to: it replaces `into` at the end, and goes on an error."""
    into.parent.mkdir(parents=True, exist_ok=True)
    path = into.with_name(f".{into.name}.{os.getpid()}.draft")
    try:
        yield path
        os.replace(path, into)
    finally:
        path.unlink(missing_ok=True)
