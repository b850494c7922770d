"""What the audit log says of a response."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from harness.serve.draft import Draft
from harness.serve.governor import Verdict
from harness.serve.job import Job

Outcome = Literal["completed", "disconnected", "timed out", "shut down", "error"]
Recorded = Literal["hash", "text", "none"]


def record_of(
    job: Job, outcome: Outcome, verdict: Verdict | None, recorded: Recorded, error: str = ""
) -> dict[str, Any]:
    """One response, whatever became of it; an answer that was cut short has no verdict."""
    draft = verdict.draft if verdict else (job.drafts[-1] if job.drafts else Draft(job.order.alpha))
    order = job.order
    said: dict[str, Any] = {
        "kind": "response",
        "id": job.id,
        "request": job.request,
        "choice": job.choice,
        "endpoint": job.endpoint,
        "client": job.client,
        "user": job.user,
        "outcome": outcome,
        "domain": order.domain,
        "threshold": verdict.threshold if verdict else None,
        "score": draft.score,
        "verdict": verdict.opinion if verdict else None,
        "decision": verdict.decision if verdict else None,
        "regenerated": verdict.regenerated if verdict else False,
        "alpha_asked": order.alpha,
        "alphas": [each.alpha for each in job.drafts],
        "alpha": draft.alpha,
        "neurons": summary(draft),
        **asdict(order.drawing),
        "json_schema": bool(order.grammar),
        "finish": verdict.finish if verdict else None,
        "prompt_tokens": len(order.prompt),
        "tokens": len(draft.tokens),
        "tokens_written": sum(len(each.tokens) for each in job.drafts),
        "seconds_queued": job.seconds_queued,
        "seconds": job.seconds,
        **_text("prompt", job.asked, recorded),
        **_text("answer", draft.text, recorded),
    }
    return said | ({"error": error} if error else {})


def summary(draft: Draft) -> list[list[float]]:
    """[layer, index, mean CETT, mean contribution] of the neurons that were among a token's first.

    Means are over the tokens at which a neuron was; the most told of come first.
    """
    met: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for token in draft.tokens:
        for layer, index, cett, part in token.reading.neurons:
            met[layer, index].append((cett, part))
    means = [
        [*place, *(sum(values) / len(values) for values in zip(*found, strict=True))]
        for place, found in met.items()
    ]
    return sorted(means, key=lambda row: -abs(row[3]))


def _text(name: str, text: Sequence[Any], recorded: Recorded) -> dict[str, Any]:
    if recorded == "none":
        return {}
    if recorded == "text":
        return {name: text}
    return {f"{name}_sha256": digest(text)}


def digest(text: Sequence[Any]) -> str:
    """SHA-256 of a prompt or answer: of a string's UTF-8, or of the compact JSON of messages."""
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
