"""Progress of long work: bars on a terminal, plain lines elsewhere, nothing when quiet."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars


class Task:
    """One piece of long work, `done` of `total` units."""

    def __init__(self, bars: Bars | None, description: str, total: int, unit: str) -> None:
        self._bars = bars
        self._started = time.monotonic()
        self._unit = unit
        self._note = ""
        self.done = 0
        if bars is not None:
            self._id = bars.add_task(description, total=total, rate="", note="")

    def advance(self, n: int) -> None:
        """`n` more units are done."""
        self.done += n
        if self._bars is not None:
            rate = f"{self.done / max(self.seconds, 1e-9):.1f} {self._unit}/s"
            self._bars.update(self._id, advance=n, rate=rate)

    def note(self, text: str) -> None:
        """Says how the work stands, beside the bar."""
        self._note = text
        if self._bars is not None:
            self._bars.update(self._id, note=text)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def __str__(self) -> str:
        note = f", {self._note}" if self._note else ""
        return f"{self.done} {self._unit} in {self.seconds:.1f} s{note}"


class Progress:
    """Shows tasks on stderr: bars on a terminal, a line at the start and end of each elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        from transformers.utils import logging  # takes a second to import

        logging.disable_progress_bar()  # the bars here are the only ones
        if not self._quiet and self._console.is_terminal and "CI" not in os.environ:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bars = Bars(*columns, console=self._console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    @contextmanager
    def task(self, description: str, total: int, unit: str) -> Iterator[Task]:
        """A task: advance it as the work goes."""
        lines = self._bars is None and not self._quiet
        if lines:
            self._console.print(f"{description}: {total} {unit} …", highlight=False)
        task = Task(self._bars, description, total, unit)
        yield task
        if lines:
            self._console.print(f"{description}: {task}", highlight=False)
