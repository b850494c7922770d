"""The engine: one thread owns the model and answers several of the queued jobs together."""

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.serve.generation.answer import Draft, FinalAnswer, GenerationRequest, Token
from harness.serve.generation.queue import (
    Event,
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
    ) -> Generator[Token | FinalAnswer | None, None, None]:
        """Yield the tokens that may be shown, then the final answer; None to wait for a step.

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


@dataclass(slots=True, eq=False)
class _RunningJob:
    """A job that is being answered."""

    job: Job
    events: Generator[Token | FinalAnswer | None, None, None]
    fault: Exception | None = None  # of a step that should have continued it


class Engine:
    """Answers jobs in order of arrival, `parallel` of them at a time.

    Between two steps of the model every answer is continued as far as it goes without the model.

    Each response is recorded before its last event is delivered, so a client that has a complete
    answer finds it in the audit log.

    Args:
        step: continues the answers that wait for the model by one step.
        parallel: number of answers that are generated together.
        capacity: number of requests that may wait.
        observe: called after each response with the job, its outcome and its answer.
    """

    def __init__(
        self,
        answerer: Answerer,
        recorder: ResponseRecorder,
        step: Callable[[], None],
        parallel: int,
        capacity: int,
        observe: Callable[[Job, ResponseOutcome, FinalAnswer | None], None],
    ) -> None:
        self._answerer, self._recorder = answerer, recorder
        self._capacity, self._observe = capacity, observe
        self._step, self._parallel = step, parallel
        self._queue = RequestQueue(capacity)
        self._next: deque[Job] = deque()  # of requests that have left the queue
        self._events: list[tuple[Job, Event]] = []  # to be delivered before the next step
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
            wait = len(self._queue) * mean / self._parallel
            raise QueueFull(self._capacity, max(1, round(wait)))

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
        running: list[_RunningJob] = []
        while running := [*running, *self._begun(self._parallel - len(running))]:
            self.busy = True
            self._finish_abandoned()
            running = [each for each in running if self._advance(each)]
            self._deliver()
            if running:
                self._continue(running)
            self.busy = bool(running)

    def _deliver(self) -> None:
        """Deliver all events at once: receivers wake up only after every answer has advanced."""
        events, self._events = self._events, []
        for job, event in events:
            job.deliver(event)

    def _begun(self, places: int) -> list[_RunningJob]:
        """Begin as many jobs as there are places; wait for one if no job runs."""
        begun: list[_RunningJob] = []
        while len(begun) < places:
            if not self._next:
                is_idle = places == self._parallel and not begun
                self._next.extend(self._queue.get(wait=is_idle) or ())
            if not self._next:
                break
            begun.append(self._begin(self._next.popleft()))
        return begun

    def _begin(self, job: Job) -> _RunningJob:
        job.begin()

        def check_running() -> None:
            if self._aborting:
                job.stop("shut down")
            job.check_running()

        return _RunningJob(job, self._answerer.answer(job.request, job.drafts, check_running))

    def _continue(self, running: Sequence[_RunningJob]) -> None:
        """Run one step of the model; if it fails, so does every answer that runs."""
        try:
            self._step()
        except Exception as fault:
            for each in running:
                each.fault = fault

    def _advance(self, running: _RunningJob) -> bool:
        """Deliver what an answer has, up to the next step; return False if it has ended."""
        job = running.job
        answer: FinalAnswer | None = None
        outcome: ResponseOutcome = "completed"
        last_event: FinalAnswer | Failure
        error = ""
        try:
            if running.fault is not None:
                running.events.close()
                raise running.fault
            for event in running.events:
                if event is None:
                    return True
                if isinstance(event, FinalAnswer):
                    answer = last_event = event
                else:
                    self._events.append((job, event))
            assert answer is not None
        except JobStopped as stopped:
            outcome, last_event = stopped.reason, Failure(stopped.reason)
        except Exception as fault:  # the thread has to survive any answer
            outcome, error = "error", str(fault) if isinstance(fault, HQError) else repr(fault)
            log.error("An answer failed:\n%s", traceback.format_exc())
            last_event = Failure("error")
        self._recent_seconds.append(job.seconds - (job.seconds_queued or 0.0))
        self._finish(job, outcome, last_event, answer, error)
        return False

    def _finish_abandoned(self) -> None:
        """Finish waiting jobs whose client is gone while others are answered."""
        gone = [job for job in self._next if job.stop_reason is not None]
        for job in gone:
            self._next.remove(job)
        for job in (*gone, *self._queue.remove_abandoned()):
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
        """Record a response, after which its last event may be delivered."""
        try:
            self._recorder.finished(job, outcome, answer, error)
        except Exception as fault:
            self._record_error = "The audit log cannot be written."
            log.critical("%s No more requests are answered.", fault)
            last_event = Failure("not recorded")
        self._observe(job, outcome, answer)
        self._events.append((job, last_event))
