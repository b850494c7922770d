"""Response models: OpenAI's completions and chunks, with the probe's output in `hq`."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from harness.serve.generation.answer import FinishReason, PieceLogprob, Reading
from harness.serve.policy.file import ActionName


class TopLogprob(BaseModel):
    """A likely token; `bytes` may be an incomplete character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A generated token, and the likeliest tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(BaseModel):
    """Log-probabilities of a text's tokens, in lists of equal length.

    Offsets count characters of the answer.
    """

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(logprobs: Iterable[PieceLogprob]) -> ChatLogprobs:
    """Convert log-probabilities to the format of chat completions."""
    return ChatLogprobs(
        content=[
            TokenLogprob(
                **_logprob_fields(logprob),
                top_logprobs=[TopLogprob(**_logprob_fields(likely)) for likely in logprob.top],
            )
            for logprob in logprobs
        ]
    )


def text_logprobs(logprobs: Iterable[PieceLogprob], offset: int = 0) -> TextLogprobs:
    """Convert log-probabilities to the format of completions.

    Args:
        offset: characters of the answer before the first token.
    """
    pieces = list(logprobs)
    return TextLogprobs(
        tokens=[piece.text for piece in pieces],
        token_logprobs=[piece.logprob for piece in pieces],
        top_logprobs=[_logprobs_by_text(piece.top) for piece in pieces],
        text_offset=list(_offsets(pieces, offset)),
    )


def _logprobs_by_text(top: Iterable[PieceLogprob]) -> dict[str, float]:
    """The likeliest first; of several tokens with the same text, only the likeliest."""
    by_text: dict[str, float] = {}
    for piece in top:
        by_text.setdefault(piece.text, piece.logprob)
    return by_text


def _logprob_fields(piece: PieceLogprob) -> dict[str, object]:
    return {"token": piece.text, "logprob": piece.logprob, "bytes": list(piece.piece)}


def _offsets(pieces: Iterable[PieceLogprob], offset: int) -> Iterator[int]:
    for piece in pieces:
        yield offset
        offset += piece.characters


class Sparse(BaseModel):
    """A model whose None fields are omitted from the JSON."""

    @model_serializer(mode="wrap")
    def _omit_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class Judgement(BaseModel):
    """The verdict on one answer, and the policy's decision. An empty answer has no score.

    `seed` repeats the answer. `ignored` names request fields without effect. `tokens` holds (text,
    token's score, score of the answer so far); it is omitted in streams and empty for blocked
    answers.
    """

    score: float | None
    confidence: float | None
    threshold: float
    domain: str
    verdict: Literal["hallucination", "no hallucination"] | None
    decision: Literal["pass"] | ActionName
    alpha: float
    regenerated: bool
    audit_id: str
    seed: int
    ignored: list[str]
    tokens: list[tuple[str, float, float]] | None = None


class Usage(BaseModel):
    """Number of tokens of the prompt, and of the answers that were sent or blocked."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class CompletionChoice(BaseModel):
    """One answer; `hq` is included if the request asks for several."""

    index: int
    finish_reason: FinishReason | None = None
    hq: Judgement | None = None

    @model_serializer(mode="wrap")
    def _omit_empty_hq(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            name: value for name, value in handler(self).items() if (name, value) != ("hq", None)
        }


class ChatChoice(CompletionChoice):
    """One answer of a chat completion."""

    message: ChatMessage
    logprobs: ChatLogprobs | None = None


class Delta(Sparse):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatDeltaChoice(CompletionChoice):
    """What a chunk adds to one answer."""

    delta: Delta
    logprobs: ChatLogprobs | None = None


class TextChoice(CompletionChoice):
    """One continuation of a text; in a chunk, what it adds."""

    text: str
    logprobs: TextLogprobs | None = None


class _Completion(BaseModel):
    id: str
    created: int
    model: str


class ChatCompletion(_Completion):
    """A complete chat completion; `hq` belongs to the first answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    hq: Judgement


class ChatChunk(_Completion, Sparse):
    """A chunk of a streamed chat completion."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatDeltaChoice]
    usage: Usage | None = None
    hq: Reading | Judgement | None = None


class TextCompletion(_Completion):
    """A complete text completion; `hq` belongs to the first answer."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage
    hq: Judgement


class TextChunk(_Completion, Sparse):
    """A chunk of a streamed text completion."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | None = None
    hq: Reading | Judgement | None = None


class ServedModelCard(BaseModel):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hq"


class ModelList(BaseModel):
    """The list of served models, which has one entry."""

    object: Literal["list"] = "list"
    data: list[ServedModelCard]
