"""Jobs and the queue in which requests wait for the model."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.serve.generation.answer import Draft, FinalAnswer, GenerationRequest, Token

StopReason = Literal["disconnected", "timed out", "shut down"]
ResponseOutcome = Literal["completed", "disconnected", "timed out", "shut down", "error"]


class JobStopped(Exception):  # noqa: N818 - ends an answer on purpose
    """Raised inside the generation of an answer that must not be continued."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Failure:
    """The last event of a job without an answer; "not recorded": the audit log is not writable."""

    reason: StopReason | Literal["error", "not recorded"]


Event = Token | FinalAnswer | Failure


@dataclass(slots=True)
class Job:
    """One answer to generate, with the origin of the request and the receiver of its events.

    A request for n answers consists of n jobs that share `request_id`.

    Args:
        request: the encoded request.
        prompt: the prompt as the client sent it.
        deadline: on the monotonic clock, in seconds.
        deliver: called on the engine's thread with tokens, then once with the final answer or a
            failure.
        choice: index of this answer among those of its request.
        client: digest of the API key.
    """

    id: str
    endpoint: str
    request: GenerationRequest
    prompt: str | list[Any]
    deadline: float
    deliver: Callable[[Event], None]
    request_id: str = ""
    choice: int = 0
    client: str = ""
    user: str | None = None
    drafts: list[Draft] = field(default_factory=list)
    arrived: float = field(default_factory=time.monotonic)
    seconds_queued: float | None = None
    _reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Stop the job before its next token, or before it begins. Thread-safe."""
        self._reason = self._reason or reason

    def begin(self) -> None:
        """Note that the job leaves the queue."""
        self.seconds_queued = self.seconds

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the job must not be continued; None while it may be."""
        if self._reason is None and time.monotonic() > self.deadline:
            return "timed out"
        return self._reason

    def check_running(self) -> None:
        """Raise JobStopped if the job was stopped or its deadline has passed."""
        if (reason := self.stop_reason) is not None:
            raise JobStopped(reason)

    @property
    def seconds(self) -> float:
        """Seconds since the job arrived."""
        return round(time.monotonic() - self.arrived, 4)


class RequestQueue:
    """Requests in order of arrival, each as the jobs of its answers; at most `capacity` of them.

    A request whose client disconnected, or whose deadline has passed, does not count any more, and
    `remove_abandoned` takes it out.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._requests: deque[Sequence[Job]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, jobs: Sequence[Job]) -> bool:
        """Add a request; return False if the queue is full."""
        with self._changed:
            if len(self) >= self._capacity:
                return False
            self._requests.append(jobs)
            self._changed.notify()
            return True

    def get(self, wait: bool) -> Sequence[Job] | None:
        """Return the next request, or None if there is none.

        With `wait`, wait for it; None then means that the queue is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed or not wait)
            return self._requests.popleft() if self._requests else None

    def remove_abandoned(self) -> list[Job]:
        """Remove the requests that nobody waits for, and return their jobs."""
        with self._changed:
            abandoned = [jobs for jobs in self._requests if _is_abandoned(jobs)]
            self._requests = deque(jobs for jobs in self._requests if not _is_abandoned(jobs))
        return [job for jobs in abandoned for job in jobs]

    def close(self) -> None:
        """Let `get` return None after the requests that wait now."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:  # a reentrant lock
            return sum(not _is_abandoned(jobs) for jobs in self._requests)


def _is_abandoned(jobs: Sequence[Job]) -> bool:
    return all(job.stop_reason is not None for job in jobs)
