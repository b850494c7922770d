"""The engine: one thread owns the model and answers the queued jobs one after the other."""

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from harness.serve.generation.answer import Draft, FinalAnswer, GenerationRequest, Token
from harness.serve.generation.queue import (
    Failure,
    Job,
    JobStopped,
    RequestQueue,
    ResponseOutcome,
    StopReason,
)
from hq.errors import HQError

log = logging.getLogger(__name__)


class EngineUnavailable(Exception):  # noqa: N818 - a state, not a fault
    """The engine takes no jobs; the message says why."""


class QueueFull(Exception):  # noqa: N818 - a state, not a fault
    """The queue holds `capacity` requests; a place is expected after `retry_after` seconds."""

    def __init__(self, capacity: int, retry_after: int) -> None:
        super().__init__(f"{capacity} requests are waiting already: try again later.")
        self.retry_after = retry_after


class Answerer(Protocol):
    """Generates answers; `harness.serve.policy.enforcer.PolicyEnforcer` is one."""

    def answer(
        self, request: GenerationRequest, drafts: list[Draft], check_running: Callable[[], None]
    ) -> Iterator[Token | FinalAnswer]:
        """Yield the tokens that may be shown, then the final answer.

        Appends each draft to `drafts` when it begins, and calls `check_running` before each token.
        """
        ...


class ResponseRecorder(Protocol):
    """Records what the engine does; `harness.serve.audit.record.AuditRecorder` is one."""

    def started(self) -> None:
        """Record that the engine starts."""
        ...

    def stopped(self) -> None:
        """Record that the engine stopped."""
        ...

    def finished(
        self, job: Job, outcome: ResponseOutcome, answer: FinalAnswer | None, error: str = ""
    ) -> None:
        """Record a response, and return once the record is on the disk."""
        ...


class Engine:
    """Answers jobs in order of arrival, one at a time.

    Each response is recorded before its last event is delivered, so a client that has a complete
    answer finds it in the audit log.

    Args:
        capacity: number of requests that may wait.
        observe: called after each response with the job, its outcome and its answer.
    """

    def __init__(
        self,
        answerer: Answerer,
        recorder: ResponseRecorder,
        capacity: int,
        observe: Callable[[Job, ResponseOutcome, FinalAnswer | None], None],
    ) -> None:
        self._answerer, self._recorder = answerer, recorder
        self._capacity, self._observe = capacity, observe
        self._queue = RequestQueue(capacity)
        self._recent_seconds: deque[float] = deque([1.0], maxlen=32)  # of the last answers
        self._shutting_down = self._aborting = False
        self._record_error = ""
        self._thread = threading.Thread(target=self._work, name="hq-engine", daemon=True)
        self.busy = False

    def start(self) -> None:
        """Record the start, and begin to answer."""
        self._recorder.started()
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request.

        Raises QueueFull if the queue is full, and EngineUnavailable if no jobs are taken.
        """
        if not self.ready:
            raise EngineUnavailable(self._record_error or "The server is shutting down.")
        if not self._queue.put(jobs):
            mean = sum(self._recent_seconds) / len(self._recent_seconds)
            raise QueueFull(self._capacity, max(1, round(len(self._queue) * mean)))

    @property
    def ready(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and not self._shutting_down and not self._record_error

    @property
    def queue_length(self) -> int:
        """Number of requests that wait."""
        return len(self._queue)

    @property
    def disconnect_reason(self) -> StopReason:
        """Why a client no longer waits: it disconnected, or the server closed its connection."""
        return "shut down" if self._shutting_down else "disconnected"

    def shut_down(self) -> None:
        """Take no more jobs; those in the queue are still answered."""
        self._shutting_down = True

    def abort(self) -> None:
        """Stop the running and the waiting jobs; each is recorded."""
        self._shutting_down = self._aborting = True

    def close(self) -> None:
        """Abort, wait for the thread, and record the stop."""
        self.abort()
        if self._thread.is_alive():
            self._queue.close()
            self._thread.join()
            if not self._record_error:
                self._recorder.stopped()

    def _work(self) -> None:
        while (jobs := self._queue.get()) is not None:
            self.busy = True
            for job in jobs:
                self._answer(job)
            self.busy = False

    def _answer(self, job: Job) -> None:
        answer: FinalAnswer | None = None
        outcome: ResponseOutcome = "completed"
        last_event: FinalAnswer | Failure
        error = ""
        job.begin()

        def check_running() -> None:
            if self._aborting:
                job.stop("shut down")
            self._finish_abandoned()
            job.check_running()

        try:
            for event in self._answerer.answer(job.request, job.drafts, check_running):
                if isinstance(event, FinalAnswer):
                    answer = last_event = event
                else:
                    job.deliver(event)
            assert answer is not None
        except JobStopped as stopped:
            outcome, last_event = stopped.reason, Failure(stopped.reason)
        except Exception as fault:  # the thread has to survive any answer
            outcome, error = "error", str(fault) if isinstance(fault, HQError) else repr(fault)
            log.error("An answer failed:\n%s", traceback.format_exc())
            last_event = Failure("error")
        self._recent_seconds.append(job.seconds - (job.seconds_queued or 0.0))
        self._finish(job, outcome, last_event, answer, error)

    def _finish_abandoned(self) -> None:
        """Finish waiting jobs whose client is gone while another answer is generated."""
        for job in self._queue.remove_abandoned():
            job.begin()
            reason = job.stop_reason or "disconnected"
            self._finish(job, reason, Failure(reason))

    def _finish(
        self,
        job: Job,
        outcome: ResponseOutcome,
        last_event: FinalAnswer | Failure,
        answer: FinalAnswer | None = None,
        error: str = "",
    ) -> None:
        """Record a response, then deliver its last event."""
        try:
            self._recorder.finished(job, outcome, answer, error)
        except Exception as fault:
            self._record_error = "The audit log cannot be written."
            log.critical("%s No more requests are answered.", fault)
            last_event = Failure("not recorded")
        self._observe(job, outcome, answer)
        job.deliver(last_event)
