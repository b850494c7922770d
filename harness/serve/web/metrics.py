"""Prometheus metrics: numbers of requests and responses, durations, tokens and scores."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from harness.serve.generation.answer import FinalAnswer
from harness.serve.generation.engine import Engine
from harness.serve.generation.queue import Job, ResponseOutcome

_SCORE_BUCKETS = (-4, -3, -2, -1.5, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1.5, 2, 3, 4)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self._requests = counter(
            "hq_requests", "Requests by route and HTTP status", ["route", "status"]
        )
        self._responses = counter(
            "hq_responses",
            "Responses, each of which has a line in the audit log",
            ["domain", "outcome", "decision"],
        )
        self._tokens = counter("hq_tokens", "Tokens of prompts and of answers", ["kind"])
        self._seconds = histogram("hq_response_seconds", "Seconds from arrival to the end")
        self._queued = histogram("hq_queue_seconds", "Seconds from arrival to generation")
        self._scores = histogram(
            "hq_score", "Scores of complete answers", ["domain"], buckets=_SCORE_BUCKETS
        )
        self._queue_length = gauge("hq_queue_length", "Requests that wait")
        self._busy = gauge("hq_busy", "Whether an answer is being generated")

    def watch(self, engine: Engine) -> None:
        """Read queue length and activity from an engine."""
        self._queue_length.set_function(lambda: engine.queue_length)
        self._busy.set_function(lambda: engine.busy)

    def count_request(self, route: str, status: int) -> None:
        """Count an HTTP request."""
        self._requests.labels(route, str(status)).inc()

    def count_response(
        self, job: Job, outcome: ResponseOutcome, answer: FinalAnswer | None
    ) -> None:
        """Count a response."""
        decision = answer.decision if answer else ""
        self._responses.labels(job.request.domain, outcome, decision).inc()
        self._tokens.labels("prompt").inc(len(job.request.prompt))
        self._tokens.labels("answer").inc(sum(len(draft.tokens) for draft in job.drafts))
        self._seconds.observe(job.seconds)
        self._queued.observe(job.seconds_queued or 0.0)
        if answer is not None and answer.draft.score is not None:
            self._scores.labels(job.request.domain).observe(answer.draft.score)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)
