"""Calls from the engine's thread that the event loop makes."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Mailbox:
    """Passes calls to an event loop; those that come together share one wake-up.

    A wake-up writes to a socket and lets another thread run, which takes longer than a call.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._is_scheduled = False

    def call(self, loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
        """Let the loop call the function. Thread-safe; does nothing if the loop has ended."""
        self._calls.append(function)
        if not self._is_scheduled:
            self._is_scheduled = True
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._is_scheduled = False  # before the calls, as others may be added meanwhile
        while self._calls:
            self._calls.popleft()()
