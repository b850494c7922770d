"""The one thread that the model belongs to, and the queue before it."""

import logging
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, cast

from harness.serve.audit import AuditLog
from harness.serve.governor import Governor, Verdict
from harness.serve.job import Job, Stopped
from harness.serve.metrics import Metrics
from harness.serve.policy import Policy
from harness.serve.record import Outcome, record_of
from harness.serve.refusal import Refusal
from harness.serve.waiting import Waiting
from hq.errors import HQError

log = logging.getLogger(__name__)


class Engine:
    """Answers jobs in the order in which they came, one at a time, and audits every one of them.

    The line of an answer is on the disk before the answer is said to be whole.
    """

    def __init__(
        self,
        governor: Governor,
        audit: AuditLog,
        policy: Policy,
        metrics: Metrics,
        hashes: Mapping[str, str],
    ) -> None:
        self._governor, self._audit, self._policy = governor, audit, policy
        self._metrics, self._hashes = metrics, dict(hashes)
        self._waiting = Waiting(policy.limits.queue)
        self._recent: deque[float] = deque([1.0], maxlen=32)  # seconds of the last answers
        self._ending = self._cut = False
        self._broken = ""
        self._thread = threading.Thread(target=self._work, name="hq-engine", daemon=True)
        metrics.watch_queue(self._waiting.__len__)

    def start(self) -> None:
        """Begins to work, and says so in the audit log."""
        self._record({"kind": "start"})
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes the jobs of a request into the queue.

        Raises Refusal where it is full, or the server is ending.
        """
        if not self.ready:
            raise Refusal(503, self._broken or "The server is ending.", code="unavailable")
        if not self._waiting.put(jobs):
            seconds = len(self._waiting) * sum(self._recent) / len(self._recent)
            raise Refusal(
                429,
                f"{self._policy.limits.queue} requests are waiting already: try again later.",
                code="queue_full",
                headers={"Retry-After": str(max(1, round(seconds)))},
            )

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive() and not self._ending and not self._broken

    def end(self) -> None:
        """Takes no more jobs; those that it has go on."""
        self._ending = True

    @property
    def why_gone(self) -> Outcome:
        """What it means that nobody waits for an answer any more."""
        return "shut down" if self._ending else "disconnected"

    def cut(self) -> None:
        """Stops what runs and what waits, each with a line of its own."""
        self._ending = self._cut = True

    def close(self) -> None:
        """Ends the thread, and says so in the audit log."""
        self.cut()
        if self._thread.is_alive():
            self._waiting.close()
            self._thread.join()
            if not self._broken:
                self._record({"kind": "stop"})

    def _work(self) -> None:
        while (jobs := self._waiting.get()) is not None:
            self._metrics.busy.set(1)
            for job in jobs:
                self._answer(job)
            self._metrics.busy.set(0)

    def _answer(self, job: Job) -> None:
        verdict: Verdict | None = None
        outcome: Outcome = "completed"
        last: Verdict | Refusal
        error = ""
        job.begin()

        def goes_on() -> None:
            if self._cut:
                job.stop("shut down")
            for gone in self._waiting.given_up():
                gone.begin()
                self._conclude(gone, cast(Outcome, gone.over), _cut_short(gone.over))
            job.goes_on()

        try:
            for event in self._governor.answer(job.order, job.drafts, goes_on):
                if isinstance(event, Verdict):
                    verdict = last = event
                else:
                    job.deliver(event)
            assert verdict is not None
        except Stopped as stopped:
            outcome, last = cast(Outcome, str(stopped)), _cut_short(str(stopped))
        except Exception as fault:  # the thread outlives any answer
            outcome, error = "error", str(fault) if isinstance(fault, HQError) else repr(fault)
            log.error("An answer failed:\n%s", traceback.format_exc())
            last = Refusal(500, "The answer failed; the server's log says why.", code="failed")
        self._recent.append(job.seconds - (job.seconds_queued or 0.0))
        self._conclude(job, outcome, last, verdict, error)

    def _conclude(
        self,
        job: Job,
        outcome: Outcome,
        last: Verdict | Refusal,
        verdict: Verdict | None = None,
        error: str = "",
    ) -> None:
        """Records what became of a job, and tells its client."""
        try:
            self._record(record_of(job, outcome, verdict, self._policy.record, error))
        except Exception as fault:
            self._broken = "The audit log cannot be written."
            log.critical("%s Nothing more is answered.", fault)
            last = Refusal(503, self._broken, code="unavailable")
        self._metrics.answered(job, outcome, verdict)
        job.deliver(last)

    def _record(self, content: dict[str, Any]) -> None:
        self._audit.append(content | self._hashes)


def _cut_short(why: str) -> Refusal:
    """What a client that is still there is told."""
    said = {
        "timed out": (504, "The answer took too long."),
        "shut down": (503, "The server is ending."),
    }
    status, message = said.get(why, (499, "The client has gone."))
    return Refusal(status, message, code=why.replace(" ", "_"))
