"""Records of responses: what a line of the audit log contains."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from harness.serve.audit.log import AuditLog
from harness.serve.generation.answer import Draft, FinalAnswer
from harness.serve.generation.queue import Job, ResponseOutcome

TextRecording = Literal["hash", "text", "none"]


class AuditRecorder:
    """Records what the engine does in an audit log.

    Args:
        hashes: versions and digests that each line contains: of hq, model, bundle and policy.
        recording: how prompts and answers are recorded.
    """

    def __init__(self, log: AuditLog, hashes: Mapping[str, str], recording: TextRecording) -> None:
        self._log, self._hashes, self._recording = log, dict(hashes), recording

    def started(self) -> None:
        """Record that the engine starts."""
        self._append({"kind": "start"})

    def stopped(self) -> None:
        """Record that the engine stopped."""
        self._append({"kind": "stop"})

    def finished(
        self, job: Job, outcome: ResponseOutcome, answer: FinalAnswer | None, error: str = ""
    ) -> None:
        """Record a response. Raises HQError if the log cannot be written."""
        self._append(response_record(job, outcome, answer, self._recording, error))

    def _append(self, content: dict[str, Any]) -> None:
        self._log.append(content | self._hashes)


def response_record(
    job: Job,
    outcome: ResponseOutcome,
    answer: FinalAnswer | None,
    recording: TextRecording,
    error: str = "",
) -> dict[str, Any]:
    """Return the record of one response; `answer` is None if it was not finished."""
    draft = answer.draft if answer else (job.drafts[-1] if job.drafts else Draft(job.request.alpha))
    request = job.request
    record: dict[str, Any] = {
        "kind": "response",
        "id": job.id,
        "request": job.request_id,
        "choice": job.choice,
        "endpoint": job.endpoint,
        "client": job.client,
        "user": job.user,
        "outcome": outcome,
        "domain": request.domain,
        "threshold": answer.threshold if answer else None,
        "score": draft.score,
        "verdict": answer.verdict if answer else None,
        "decision": answer.decision if answer else None,
        "regenerated": answer.regenerated if answer else False,
        "alpha_asked": request.alpha,
        "alphas": [each.alpha for each in job.drafts],
        "alpha": draft.alpha,
        "neurons": mean_contributions(draft),
        **asdict(request.sampling),
        "json_schema": bool(request.grammar),
        "finish": answer.finish_reason if answer else None,
        "prompt_tokens": len(request.prompt),
        "tokens": len(draft.tokens),
        "tokens_written": sum(len(each.tokens) for each in job.drafts),
        "seconds_queued": job.seconds_queued,
        "seconds": job.seconds,
        **_text_fields("prompt", job.prompt, recording),
        **_text_fields("answer", draft.text, recording),
    }
    return record | ({"error": error} if error else {})


def mean_contributions(draft: Draft) -> list[list[float]]:
    """Return [layer, index, mean CETT, mean contribution] for each neuron listed in a reading.

    Means are over the tokens whose reading lists the neuron. Sorted by absolute contribution, the
    largest first.
    """
    listed: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for token in draft.tokens:
        for layer, index, cett, contribution in token.reading.neurons:
            listed[layer, index].append((cett, contribution))
    rows = [
        [*neuron, *(sum(column) / len(column) for column in zip(*values, strict=True))]
        for neuron, values in listed.items()
    ]
    return sorted(rows, key=lambda row: -abs(row[3]))


def _text_fields(name: str, text: Sequence[Any], recording: TextRecording) -> dict[str, Any]:
    if recording == "none":
        return {}
    if recording == "text":
        return {name: text}
    return {f"{name}_sha256": text_digest(text)}


def text_digest(text: Sequence[Any]) -> str:
    """Return the SHA-256 of a string's UTF-8 bytes, or of messages as compact JSON."""
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
