"""Where the engine's thread leaves the events of a request for the event loop."""

import asyncio
from contextlib import suppress

from harness.serve.governor import Verdict
from harness.serve.job import Event
from harness.serve.refusal import Refusal


class Inbox:
    """Of one request, whose answers are numbered; made where the loop runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def put(self, choice: int, event: Event) -> None:
        """From any thread. A loop that has ended needs no events."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

    async def get(self, seconds: float) -> tuple[int, Event] | None:
        """The next event and which answer it is of, or None if there is none in that time."""
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None

    async def verdicts(self, answers: int) -> list[Verdict] | Refusal:
        """What ends the answers, or the first of them that failed; their tokens are dropped."""
        found: dict[int, Verdict] = {}
        while len(found) < answers:
            choice, event = await self._events.get()
            if isinstance(event, Refusal):
                return event
            if isinstance(event, Verdict):
                found[choice] = event
        return [found[choice] for choice in range(answers)]
