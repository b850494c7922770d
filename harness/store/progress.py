"""Progress of long tasks: bars on a terminal, lines elsewhere, nothing if quiet."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
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

EVERY_S = 60.0  # seconds between two lines


class Task:
    """A long task, of which `done` of `total` units are finished."""

    def __init__(self, bars: Bars | None, description: str, total: int, unit: str) -> None:
        self._bars = bars
        self._started = self._seen_at = time.monotonic()
        self._seen = 0
        self._unit = unit
        self._note = ""
        self.total = total
        self.done = 0
        if bars is not None:
            self._id = bars.add_task(description, total=total, rate="", note="")

    def advance(self, n: int) -> None:
        """Count `n` more finished units."""
        self.done += n
        if self._bars is not None:
            rate = f"{self.done / max(self.seconds, 1e-9):.1f} {self._unit}/s"
            self._bars.update(self._id, advance=n, rate=rate)

    def note(self, text: str) -> None:
        """Show a remark beside the bar."""
        self._note = text
        if self._bars is not None:
            self._bars.update(self._id, note=text)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def __str__(self) -> str:
        return f"{self.done} {self._unit} in {self.seconds:.1f} s{self._noted}"

    def status(self) -> str:
        """Return what is finished, and the time left at the rate since the last call.

        Units that an earlier run finished are counted at the start, so they do not affect the rate.
        """
        now, done = time.monotonic(), self.done
        seconds, gained = now - self._seen_at, done - self._seen
        self._seen_at, self._seen = now, done
        left = ""
        if gained:
            left = f", about {_duration(seconds * (self.total - done) / gained)} left"
        return f"{done} of {self.total} {self._unit}{left}{self._noted}"

    @property
    def _noted(self) -> str:
        return f", {self._note}" if self._note else ""


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 100:
        return f"{minutes / 60:.1f} h"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


class Progress:
    """Shows tasks on stderr: bars on a terminal, lines elsewhere.

    A task has a line at its start, at its end, and every `every` seconds between them.
    """

    def __init__(self, quiet: bool = False, every: float = EVERY_S) -> None:
        self._quiet = quiet
        self._every = every
        self._console = Console(stderr=True)
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        silence_transformers()  # the bars here are the only ones
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
        """Show a task; the caller advances it."""
        task = Task(self._bars, description, total, unit)
        if self._bars is not None or self._quiet:
            yield task
            return
        self._line(f"{description}: {total} {unit} …")
        with _repeated(self._every, lambda: self._line(f"{description}: {task.status()}")):
            yield task
        self._line(f"{description}: {task}")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _repeated(every: float, action: Callable[[], None]) -> Iterator[None]:
    """Call an action in a thread every `every` seconds, however long a step of the task takes."""
    ended = Event()

    def repeat() -> None:
        while not ended.wait(every):
            action()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def silence_transformers() -> None:
    """Turn off the progress bars of transformers, including those of its GGUF reader."""
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging  # takes a second to import

    logging.disable_progress_bar()
    gguf_reader.tqdm = logging.tqdm
