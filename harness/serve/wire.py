"""Events of the engine as OpenAI's responses and server-sent events."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel
from scipy.special import expit

from harness.serve.draft import Token
from harness.serve.governor import Verdict
from harness.serve.job import Job
from harness.serve.refusal import Refusal
from harness.serve.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDeltaChoice,
    ChatMessage,
    Delta,
    Finish,
    Judgement,
    Reading,
    TextChoice,
    TextChunk,
    TextCompletion,
    Usage,
)

KEEP_ALIVE = b": still at it\n\n"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Wire:
    """One response's form: of a chat, or of a text."""

    job: Job
    model: str
    chat: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        """What OpenAI's clients know the response by."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.job.id}"

    def whole(self, verdict: Verdict) -> BaseModel:
        """The response that is not streamed."""
        shared = {"id": self.id, "created": self.created, "model": self.model}
        shared |= {"usage": self._usage(verdict), "hq": self._judgement(verdict, tokens=True)}
        if self.chat:
            message = ChatMessage(content=verdict.text)
            choice = ChatChoice(message=message, finish_reason=verdict.finish)
            return ChatCompletion(choices=[choice], **shared)
        text = TextChoice(text=verdict.text, finish_reason=verdict.finish)
        return TextCompletion(choices=[text], **shared)

    def opening(self) -> Iterator[bytes]:
        """What a stream begins with: who speaks."""
        if self.chat:
            yield self._chunk(Delta(role="assistant", content=""))

    def token(self, token: Token) -> bytes:
        """A token with its reading."""
        return self._chunk(Delta(content=token.text), hq=token.reading)

    def closing(self, verdict: Verdict, usage: bool) -> Iterator[bytes]:
        """What a stream ends with: text that was not shown yet, the verdict, and the end."""
        rest = verdict.text if verdict.blocked else verdict.draft.tail
        if rest:
            yield self._chunk(Delta(content=rest))
        judgement = self._judgement(verdict, tokens=False)
        yield self._chunk(Delta(), finish=verdict.finish, hq=judgement)
        if usage:
            yield self._chunk(None, usage=self._usage(verdict))
        yield DONE

    def failure(self, refusal: Refusal) -> bytes:
        """An error in a stream that has begun."""
        return event(refusal.body)

    def _chunk(
        self,
        delta: Delta | None,
        finish: Finish | None = None,
        hq: Reading | Judgement | None = None,
        usage: Usage | None = None,
    ) -> bytes:
        shared = {"id": self.id, "created": self.created, "model": self.model}
        if self.chat:
            choices = [] if delta is None else [ChatDeltaChoice(delta=delta, finish_reason=finish)]
            return event(ChatChunk(choices=choices, hq=hq, usage=usage, **shared))
        added = [] if delta is None else [delta.content or ""]
        texts = [TextChoice(text=text, finish_reason=finish) for text in added]
        return event(TextChunk(choices=texts, hq=hq, usage=usage, **shared))

    def _usage(self, verdict: Verdict) -> Usage:
        read, written = len(self.job.order.prompt), len(verdict.draft.tokens)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    def _judgement(self, verdict: Verdict, tokens: bool) -> Judgement:
        score = verdict.draft.score
        shown: Iterable[Token] = () if verdict.blocked else verdict.draft.tokens
        each = [(t.text, t.reading.token_score, t.reading.score) for t in shown]
        return Judgement(
            score=score,
            confidence=None if score is None else float(expit(-score)),
            threshold=verdict.threshold,
            domain=self.job.order.domain,
            verdict=verdict.opinion,
            decision=verdict.decision,
            alpha=verdict.draft.alpha,
            regenerated=verdict.regenerated,
            audit_id=self.job.id,
            tokens=each if tokens else None,
        )


def event(value: BaseModel) -> bytes:
    """A server-sent event."""
    return b"data: " + value.model_dump_json().encode() + b"\n\n"
