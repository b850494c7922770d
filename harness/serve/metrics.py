"""What Prometheus reads: how much is asked, how it ends, and what the neurons say."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from harness.serve.governor import Verdict
from harness.serve.job import Job

_SCORES = (-4, -3, -2, -1.5, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1.5, 2, 3, 4)


class Metrics:
    """Of one server; each has a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self.requests = counter(
            "hq_requests", "Requests by route and HTTP status", ["route", "status"]
        )
        self._responses = counter(
            "hq_responses",
            "Responses, as many as the audit log has",
            ["domain", "outcome", "decision"],
        )
        self._tokens = counter("hq_tokens", "Tokens read and written", ["kind"])
        self._seconds = histogram("hq_response_seconds", "From arrival to the end")
        self._queued = histogram("hq_queue_seconds", "From arrival to the first work")
        self._scores = histogram("hq_score", "Score of whole answers", ["domain"], buckets=_SCORES)
        self._waiting = gauge("hq_queue_length", "Requests that wait")
        self.busy = gauge("hq_busy", "Whether an answer is being written")

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Where the queue's length is read."""
        self._waiting.set_function(length)

    def answered(self, job: Job, outcome: str, verdict: Verdict | None) -> None:
        """Counts a response."""
        decision = verdict.decision if verdict else ""
        self._responses.labels(job.order.domain, outcome, decision).inc()
        self._tokens.labels("prompt").inc(len(job.order.prompt))
        self._tokens.labels("answer").inc(sum(len(draft.tokens) for draft in job.drafts))
        self._seconds.observe(job.seconds)
        self._queued.observe(job.seconds_queued or 0.0)
        if verdict is not None and verdict.draft.score is not None:
            self._scores.labels(job.order.domain).observe(verdict.draft.score)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
