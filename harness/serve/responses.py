"""What a client gets: OpenAI's completions and chunks, and in `hq` what the neurons say."""

from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from harness.serve.api.logprobs import ChatLogprobs, TextLogprobs
from harness.serve.policy import ActionName

Finish = Literal["stop", "length", "content_filter"]


class Sparse(BaseModel):
    """What is None is left out."""

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class Reading(BaseModel):
    """One token of an answer, as its H-Neurons have it.

    `score` is that of the answer so far, and `neurons` are (layer, index, CETT, what it adds to the
    token's score) of those that add or take most.
    """

    token: int
    token_score: float
    score: float
    confidence: float
    neurons: list[tuple[int, int, float, float]]


class Judgement(BaseModel):
    """What became of an answer. An empty one has no score, and no verdict.

    `seed` repeats the answer. `ignored` names fields of the request that change nothing here.
    `tokens` are (text, token's score, score so far); a stream has said them, and a blocked answer
    does not.
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
    """Tokens of the prompt and of the answers that were kept."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """One of the answers; `hq` is here where there are several."""

    index: int
    finish_reason: Finish | None = None
    hq: Judgement | None = None

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            name: value for name, value in handler(self).items() if (name, value) != ("hq", None)
        }


class ChatChoice(Choice):
    """An answer in a conversation."""

    message: ChatMessage
    logprobs: ChatLogprobs | None = None


class Delta(Sparse):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatDeltaChoice(Choice):
    """What a chunk adds to an answer."""

    delta: Delta
    logprobs: ChatLogprobs | None = None


class TextChoice(Choice):
    """A continuation of a text; in a chunk, what it adds."""

    text: str
    logprobs: TextLogprobs | None = None


class _Completion(BaseModel):
    id: str
    created: int
    model: str


class ChatCompletion(_Completion):
    """Whole answers in a conversation; `hq` is of the first."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    hq: Judgement


class ChatChunk(_Completion, Sparse):
    """A part of it."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatDeltaChoice]
    usage: Usage | None = None
    hq: Reading | Judgement | None = None


class TextCompletion(_Completion):
    """Whole continuations of a text; `hq` is of the first."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage
    hq: Judgement


class TextChunk(_Completion, Sparse):
    """A part of it."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | None = None
    hq: Reading | Judgement | None = None


class ServedModelCard(BaseModel):
    """A model that a client may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hq"


class ModelList(BaseModel):
    """The one that is served."""

    object: Literal["list"] = "list"
    data: list[ServedModelCard]
