"""The wire format: engine events as OpenAI's responses and as server-sent events."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from scipy.special import expit

from harness.serve.api.errors import APIError
from harness.serve.api.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDeltaChoice,
    ChatMessage,
    Delta,
    Judgement,
    TextChoice,
    TextChunk,
    TextCompletion,
    Usage,
    chat_logprobs,
    text_logprobs,
)
from harness.serve.generation.answer import (
    FinalAnswer,
    FinishReason,
    PieceLogprob,
    Reading,
    Token,
)
from harness.serve.generation.queue import Job

KEEP_ALIVE_COMMENT = b": still at it\n\n"
STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class ResponseEncoder:
    """Encodes the events of one request's jobs.

    Args:
        model: the served model's name.
        chat: whether the response is a chat completion or a text completion.
        ignored: names of request fields without effect.
    """

    jobs: Sequence[Job]
    model: str
    chat: bool
    ignored: list[str] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    _streamed_characters: Counter[int] = field(default_factory=Counter)  # of each choice

    @property
    def id(self) -> str:
        """The response's id."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.jobs[0].request_id}"

    def completion(self, answers: Sequence[FinalAnswer]) -> BaseModel:
        """Return the response of a request without streaming."""
        judgements = [
            self._judgement(index, answer, with_tokens=True) for index, answer in enumerate(answers)
        ]
        choices = [
            self._choice(index, answer, judgements[index] if len(answers) > 1 else None)
            for index, answer in enumerate(answers)
        ]
        shared: dict[str, Any] = {"id": self.id, "created": self.created, "model": self.model}
        shared |= {"usage": self._usage(answers), "hq": judgements[0]}
        return (ChatCompletion if self.chat else TextCompletion)(choices=choices, **shared)

    def stream_start(self) -> Iterator[bytes]:
        """Yield the first events of a stream: the role of each chat message."""
        if self.chat:
            for index in range(len(self.jobs)):
                yield self._chunk(index, Delta(role="assistant", content=""))

    def token(self, index: int, token: Token) -> bytes:
        """Return the event of one token, with its reading."""
        logprobs = [token.logprob] if token.logprob else []
        return self._chunk(index, Delta(content=token.text), hq=token.reading, logprobs=logprobs)

    def answer_end(self, index: int, answer: FinalAnswer) -> Iterator[bytes]:
        """Yield the last events of one answer: text that was not shown yet, and the verdict."""
        rest = answer.text if answer.blocked else answer.draft.tail
        if rest:
            yield self._chunk(index, Delta(content=rest))
        judgement = self._judgement(index, answer, with_tokens=False)
        yield self._chunk(index, Delta(), finish_reason=answer.finish_reason, hq=judgement)

    def stream_end(self, answers: Sequence[FinalAnswer], with_usage: bool) -> Iterator[bytes]:
        """Yield the last events of a stream."""
        if with_usage:
            yield self._chunk(0, None, usage=self._usage(answers))
        yield STREAM_END

    def error(self, error: APIError) -> bytes:
        """Return the event of an error in a stream."""
        return server_sent_event(error.body)

    def _choice(self, index: int, answer: FinalAnswer, hq: Judgement | None) -> BaseModel:
        shared: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason, "hq": hq}
        if self.jobs[index].request.top_logprobs is not None and not answer.blocked:
            shared["logprobs"] = self._logprobs(
                token.logprob for token in answer.draft.tokens if token.logprob is not None
            )
        if self.chat:
            return ChatChoice(message=ChatMessage(content=answer.text), **shared)
        return TextChoice(text=answer.text, **shared)

    def _chunk(
        self,
        index: int,
        delta: Delta | None,
        finish_reason: FinishReason | None = None,
        hq: Reading | Judgement | None = None,
        usage: Usage | None = None,
        logprobs: Sequence[PieceLogprob] = (),
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason}
        if logprobs:
            choice["logprobs"] = self._logprobs(logprobs, self._streamed_characters[index])
            self._streamed_characters[index] += sum(piece.characters for piece in logprobs)
        shared: dict[str, Any] = {"id": self.id, "created": self.created, "model": self.model}
        shared |= {"hq": hq, "usage": usage}
        if self.chat:
            chat_choices = [] if delta is None else [ChatDeltaChoice(delta=delta, **choice)]
            return server_sent_event(ChatChunk(choices=chat_choices, **shared))
        text_choices = [] if delta is None else [TextChoice(text=delta.content or "", **choice)]
        return server_sent_event(TextChunk(choices=text_choices, **shared))

    def _logprobs(self, logprobs: Iterable[PieceLogprob], offset: int = 0) -> BaseModel:
        return chat_logprobs(logprobs) if self.chat else text_logprobs(logprobs, offset)

    def _usage(self, answers: Sequence[FinalAnswer]) -> Usage:
        prompt = len(self.jobs[0].request.prompt)
        completion = sum(len(answer.draft.tokens) for answer in answers)
        return Usage(
            prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
        )

    def _judgement(self, index: int, answer: FinalAnswer, with_tokens: bool) -> Judgement:
        job, score = self.jobs[index], answer.draft.score
        shown = () if answer.blocked else answer.draft.tokens
        tokens = [(token.text, token.reading.token_score, token.reading.score) for token in shown]
        return Judgement(
            score=score,
            confidence=None if score is None else float(expit(-score)),
            threshold=answer.threshold,
            domain=job.request.domain,
            verdict=answer.verdict,
            decision=answer.decision,
            alpha=answer.draft.alpha,
            regenerated=answer.regenerated,
            audit_id=job.id,
            seed=job.request.sampling.seed,
            ignored=self.ignored,
            tokens=tokens if with_tokens else None,
        )


def server_sent_event(value: BaseModel) -> bytes:
    """Encode a value as a server-sent event."""
    return b"data: " + value.model_dump_json().encode() + b"\n\n"
