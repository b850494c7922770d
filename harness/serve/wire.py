"""Events of the engine as OpenAI's responses and server-sent events."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from scipy.special import expit

from harness.serve.api.logprobs import chat_logprobs, text_logprobs
from harness.serve.draft import Token
from harness.serve.generation.odds import Odds
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
    """The form of one response, with an answer for each job: of a chat, or of a text."""

    jobs: Sequence[Job]
    model: str
    chat: bool
    ignored: list[str] = field(default_factory=list)  # fields of the request that change nothing
    created: int = field(default_factory=lambda: int(time.time()))
    _letters: Counter[int] = field(default_factory=Counter)  # of each answer, as far as streamed

    @property
    def id(self) -> str:
        """What OpenAI's clients know the response by."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.jobs[0].request}"

    def whole(self, verdicts: Sequence[Verdict]) -> BaseModel:
        """The response that is not streamed."""
        judged = [self._judgement(n, verdict, tokens=True) for n, verdict in enumerate(verdicts)]
        shared = {"id": self.id, "created": self.created, "model": self.model}
        shared |= {"usage": self._usage(verdicts), "hq": judged[0]}
        choices = [
            self._choice(n, verdict, judged[n] if len(judged) > 1 else None)
            for n, verdict in enumerate(verdicts)
        ]
        return (ChatCompletion if self.chat else TextCompletion)(choices=choices, **shared)

    def opening(self) -> Iterator[bytes]:
        """What a stream begins with: who speaks."""
        if self.chat:
            for choice in range(len(self.jobs)):
                yield self._chunk(choice, Delta(role="assistant", content=""))

    def token(self, choice: int, token: Token) -> bytes:
        """A token with its reading."""
        odds = [token.odds] if token.odds else []
        return self._chunk(choice, Delta(content=token.text), hq=token.reading, odds=odds)

    def closing(self, choice: int, verdict: Verdict) -> Iterator[bytes]:
        """What an answer ends with in a stream: text that was not shown yet, and the verdict."""
        rest = verdict.text if verdict.blocked else verdict.draft.tail
        if rest:
            yield self._chunk(choice, Delta(content=rest))
        judgement = self._judgement(choice, verdict, tokens=False)
        yield self._chunk(choice, Delta(), finish=verdict.finish, hq=judgement)

    def end(self, verdicts: Sequence[Verdict], usage: bool) -> Iterator[bytes]:
        """What a stream ends with."""
        if usage:
            yield self._chunk(0, None, usage=self._usage(verdicts))
        yield DONE

    def failure(self, refusal: Refusal) -> bytes:
        """An error in a stream that has begun."""
        return event(refusal.body)

    def _choice(self, number: int, verdict: Verdict, hq: Judgement | None) -> BaseModel:
        shared: dict[str, Any] = {"index": number, "finish_reason": verdict.finish, "hq": hq}
        if self._tells(number) and not verdict.blocked:
            shared["logprobs"] = self._logprobs(_odds(verdict))
        if self.chat:
            return ChatChoice(message=ChatMessage(content=verdict.text), **shared)
        return TextChoice(text=verdict.text, **shared)

    def _chunk(
        self,
        number: int,
        delta: Delta | None,
        finish: Finish | None = None,
        hq: Reading | Judgement | None = None,
        usage: Usage | None = None,
        odds: Sequence[Odds] = (),
    ) -> bytes:
        form: dict[str, Any] = {"index": number, "finish_reason": finish}
        if odds:
            form["logprobs"] = self._logprobs(odds, self._letters[number])
            self._letters[number] += sum(each.letters for each in odds)
        shared = {"id": self.id, "created": self.created, "model": self.model}
        if self.chat:
            choices = [] if delta is None else [ChatDeltaChoice(delta=delta, **form)]
            return event(ChatChunk(choices=choices, hq=hq, usage=usage, **shared))
        added = [] if delta is None else [delta.content or ""]
        texts = [TextChoice(text=text, **form) for text in added]
        return event(TextChunk(choices=texts, hq=hq, usage=usage, **shared))

    def _tells(self, number: int) -> bool:
        return self.jobs[number].order.likely is not None

    def _logprobs(self, odds: Iterable[Odds], offset: int = 0) -> BaseModel:
        return chat_logprobs(odds) if self.chat else text_logprobs(odds, offset)

    def _usage(self, verdicts: Sequence[Verdict]) -> Usage:
        read = len(self.jobs[0].order.prompt)
        written = sum(len(verdict.draft.tokens) for verdict in verdicts)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    def _judgement(self, number: int, verdict: Verdict, tokens: bool) -> Judgement:
        job, score = self.jobs[number], verdict.draft.score
        shown: Iterable[Token] = () if verdict.blocked else verdict.draft.tokens
        each = [(t.text, t.reading.token_score, t.reading.score) for t in shown]
        return Judgement(
            score=score,
            confidence=None if score is None else float(expit(-score)),
            threshold=verdict.threshold,
            domain=job.order.domain,
            verdict=verdict.opinion,
            decision=verdict.decision,
            alpha=verdict.draft.alpha,
            regenerated=verdict.regenerated,
            audit_id=job.id,
            seed=job.order.drawing.seed,
            ignored=self.ignored,
            tokens=each if tokens else None,
        )


def _odds(verdict: Verdict) -> list[Odds]:
    return [token.odds for token in verdict.draft.tokens if token.odds is not None]


def event(value: BaseModel) -> bytes:
    """A server-sent event."""
    return b"data: " + value.model_dump_json().encode() + b"\n\n"
