"""Where the engine's thread leaves a job's events for the event loop."""

import asyncio
from contextlib import suppress

from harness.serve.draft import Token
from harness.serve.governor import Verdict
from harness.serve.job import Event
from harness.serve.refusal import Refusal


class Inbox:
    """Of one job; made where the loop runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """From any thread. A loop that has ended needs no events."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def get(self, seconds: float) -> Event | None:
        """The next event, or None if there is none in that time."""
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None

    async def last(self) -> Verdict | Refusal:
        """What ends the answer; the tokens before it are dropped."""
        while isinstance(event := await self._events.get(), Token):
            pass
        return event
