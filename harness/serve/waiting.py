"""Requests that wait for the model, in the order in which they came."""

import threading
from collections import deque
from collections.abc import Sequence

from harness.serve.job import Job


class Waiting:
    """At most so many requests, each as the jobs of its answers.

    A request whose client has gone, or whose time is over, gives up its place at once: it no longer
    counts, and `given_up` takes it out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._requests: deque[Sequence[Job]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, jobs: Sequence[Job]) -> bool:
        """Whether there was a place for the request."""
        with self._changed:
            if len(self) >= self._most:
                return False
            self._requests.append(jobs)
            self._changed.notify()
            return True

    def get(self) -> Sequence[Job] | None:
        """The next request, once there is one; None once it is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed)
            return self._requests.popleft() if self._requests else None

    def given_up(self) -> list[Job]:
        """The jobs of requests that nobody waits for any more, which are taken out."""
        with self._changed:
            over = [jobs for jobs in self._requests if _over(jobs)]
            self._requests = deque(jobs for jobs in self._requests if not _over(jobs))
        return [job for jobs in over for job in jobs]

    def close(self) -> None:
        """Nothing comes after what waits now."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:  # a reentrant lock
            return sum(not _over(jobs) for jobs in self._requests)


def _over(jobs: Sequence[Job]) -> bool:
    return all(job.over for job in jobs)
