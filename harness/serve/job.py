"""A request on its way through the engine."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.serve.draft import Draft, Order, Token
from harness.serve.governor import Verdict
from harness.serve.refusal import Refusal

Event = Token | Verdict | Refusal


class Stopped(Exception):  # noqa: N818 - ends an answer on purpose
    """An answer that is not written to its end; the word says why."""


@dataclass(slots=True)
class Job:
    """One answer that is asked for, by whom, and where its events go.

    `asked` is the prompt as it was said. A request for n answers is n jobs, which share `request`.

    `deliver` is called on the engine's thread: tokens, then a verdict or a refusal, which is last.
    """

    id: str
    endpoint: str
    order: Order
    asked: str | list[Any]
    deadline: float  # on the monotonic clock
    deliver: Callable[[Event], None]
    request: str = ""
    choice: int = 0  # which of the request's answers it is
    client: str = ""
    user: str | None = None
    drafts: list[Draft] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    seconds_queued: float | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _why: str = ""

    def stop(self, why: str) -> None:
        """Ends it before its next token, or before it begins; from any thread."""
        self._why = self._why or why
        self._stop.set()

    def begin(self) -> None:
        """Its turn has come."""
        self.seconds_queued = self.seconds

    @property
    def over(self) -> str:
        """Why it is not to be written any more, and "" while it is."""
        if self._stop.is_set():
            return self._why
        return "timed out" if time.monotonic() > self.deadline else ""

    def goes_on(self) -> None:
        """Raises Stopped once it was stopped, or its time is over."""
        if why := self.over:
            raise Stopped(why)

    @property
    def seconds(self) -> float:
        """Since it arrived."""
        return round(time.monotonic() - self.arrived, 4)
