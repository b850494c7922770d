"""Request models: OpenAI's chat and text completions, with hq's extension."""

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal, LiteralString, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from harness.serve.api.fields import NeutralOnly, Number, RequestModel, ShortText, Text
from harness.serve.api.messages import MessageList
from harness.serve.api.vendor_fields import Ignored, VendorFields
from harness.serve.generation.sampler import REPEAT_WINDOW, SamplingSettings

MAX_ANSWERS = 8
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 256

_MAX_TOKENS = Number("maximum number of answer tokens", 1, math.inf, whole=True, special=(-1,))
_PENALTY = "subtracted from the logits of tokens that the answer already contains"


def _parse_stops(value: Any) -> tuple[str, ...]:
    """Accept one stop string, a list of them, or none."""
    stops = [value] if isinstance(value, str) and value else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stop", "expected a string, a list of strings, or null")
    if len(stops) > MAX_STOP_STRINGS:
        raise ValueError(f"{len(stops)} strings are more than the maximum of {MAX_STOP_STRINGS}")
    if not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"each string must have 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(stops)


_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "maxLength": MAX_STOP_CHARACTERS},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
            "maxItems": MAX_STOP_STRINGS,
        },
        {"type": "null"},
    ]
}
StopStrings = Annotated[
    tuple[Text, ...],
    BeforeValidator(_parse_stops),
    WithJsonSchema(_STOP_SCHEMA),
    Field(
        description="strings that end the answer: one string, or a list of at most "
        f"{MAX_STOP_STRINGS}, each of 1 to {MAX_STOP_CHARACTERS} characters"
    ),
]


def _unwrap_prompt(value: Any) -> Any:
    """Return the single prompt of a list; a text or token ids are returned unchanged."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) != 1:
            raise ValueError(f"a request may have one prompt, not {len(value)}")
        value = value[0]
    ids = isinstance(value, list) and value and all(type(token) is int for token in value)
    if not isinstance(value, str) and not ids:
        raise ValueError("expected a text, token ids, or a list with one of them")
    return value


TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1), WithJsonSchema({})
]
_PROMPT_ITEMS = [
    {"type": "string"},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}},
]
PromptInput = Annotated[
    Text | TokenIds,
    BeforeValidator(_unwrap_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                *({**item, "minItems": 1} if "items" in item else item for item in _PROMPT_ITEMS),
                {"type": "array", "items": _PROMPT_ITEMS[0], "minItems": 1, "maxItems": 1},
                {
                    "type": "array",
                    "items": {**_PROMPT_ITEMS[1], "minItems": 1},
                    "minItems": 1,
                    "maxItems": 1,
                },
            ]
        }
    ),
    Field(description="the text to continue: a string, token ids, or a list with one of them"),
]


class StreamOptions(RequestModel):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None
    continuous_usage_stats: Annotated[
        Any, NeutralOnly(False, message="token counts are sent at the end of a stream")
    ] = None


class Extension(RequestModel):
    """The field `hq` of a request: the factor for the H-Neurons, and the policy's domain."""

    alpha: Annotated[float, Field(ge=0)] | None = None
    domain: Text | None = None


class NamedSchema(RequestModel):
    """A JSON schema in OpenAI's format; it is always enforced, whatever `strict` says."""

    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    name: Text | None = None
    description: Text | None = None
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """The format of an answer: text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    bare_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the answer has to follow; None for text."""
        if self.type == "text":
            return None
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return self.bare_schema if self.bare_schema is not None else {"type": "object"}

    @model_validator(mode="after")
    def _require_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None and self.bare_schema is None:
            raise ValueError("json_schema.schema is missing")
        return self


class CompletionRequest(VendorFields):
    """Fields of both kinds of completion. The default temperature is 0, so answers repeat."""

    model: Annotated[Text | None, Field(description="the model's name; optional")] = None
    stream: Annotated[
        bool | None, Field(description="whether tokens are sent while they are generated")
    ] = None
    stream_options: Annotated[
        StreamOptions | None,
        Field(description="`include_usage`: token counts at the end of the stream"),
    ] = None
    max_tokens: Annotated[int | None, _MAX_TOKENS] = None
    n: Annotated[int | None, Number("number of answers", 1, MAX_ANSWERS, whole=True)] = None
    best_of: Annotated[
        int | None,
        Number("must equal n, because every answer is returned", 1, MAX_ANSWERS, whole=True),
    ] = None
    temperature: Annotated[
        float | None, Number("sampling temperature; 0, the default, is greedy", 0, 2)
    ] = None
    top_p: Annotated[
        float | None,
        Number("nucleus sampling: total probability of the tokens that are kept", 0, 1),
    ] = None
    top_k: Annotated[
        int | None,
        Number(
            "number of likeliest tokens that are kept; 0 keeps all",
            0,
            2**31 - 1,
            whole=True,
            special=(-1,),
        ),
    ] = None
    min_p: Annotated[
        float | None,
        Number("minimum probability, as a fraction of the likeliest token's", 0, 1),
    ] = None
    presence_penalty: Annotated[float | None, Number(_PENALTY, -2, 2)] = None
    frequency_penalty: Annotated[
        float | None, Number(f"{_PENALTY}, once per occurrence", -2, 2)
    ] = None
    repeat_penalty: Annotated[
        float | None,
        Number("divides the logits of the last tokens of prompt and answer", 0, 10, above=True),
    ] = None
    repeat_last_n: Annotated[
        int | None,
        Number(
            f"number of last tokens that repeat_penalty covers, {REPEAT_WINDOW} by default; "
            "-1 covers all",
            -1,
            2**31 - 1,
            whole=True,
        ),
    ] = None
    seed: Annotated[
        int | None,
        Number(
            "seed of the sampling; the response contains the one that was used",
            0,
            2**63 - 1,
            whole=True,
            special=(-1,),
        ),
    ] = None
    stop: StopStrings = ()
    response_format: Annotated[
        ResponseFormat | None,
        Field(description="`text`, `json_object`, or `json_schema` with a JSON schema"),
    ] = None
    user: Annotated[
        ShortText | None,
        Field(description="recorded in the audit log; at most 256 characters"),
    ] = None
    hq: Annotated[
        Extension | None,
        Field(description="`alpha` scales the H-Neurons, `domain` selects the policy's rule"),
    ] = None

    @property
    def max_tokens_field(self) -> str:
        """Name of the field that limits the answer's tokens."""
        return "max_tokens"

    @property
    def requested_tokens(self) -> int | None:
        """Maximum number of answer tokens, if the request sets one."""
        requested: int | None = getattr(self, self.max_tokens_field)
        return requested

    @property
    @abstractmethod
    def likely_tokens(self) -> int | None:
        """Number of likely tokens returned for each token; None for no log-probabilities."""

    @property
    def answers(self) -> int:
        """Number of answers."""
        return self.n or 1

    @property
    def extension(self) -> Extension:
        """The extension `hq`, with defaults."""
        return self.hq or Extension()

    @property
    def reports_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, default_seed: int) -> SamplingSettings:
        """Return the sampling settings; the default seed is used if the request has none."""
        names = [name for name in SamplingSettings.__slots__ if getattr(self, name) is not None]
        return SamplingSettings(
            **{"seed": default_seed} | {name: getattr(self, name) for name in names}
        )

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of not in (None, self.answers):
            raise _field_error("best_of", "it must equal n, because every answer is returned")
        return self


def _field_error(field: str, message: LiteralString) -> PydanticCustomError:
    """An error of one field that only the complete request shows."""
    return PydanticCustomError("value_error", message, {"field": field})


class ChatRequest(CompletionRequest):
    """A chat completion request."""

    messages: MessageList
    max_completion_tokens: Annotated[int | None, _MAX_TOKENS] = None
    logprobs: Annotated[
        bool | None, Field(description="whether to return each token's log-probability")
    ] = None
    top_logprobs: Annotated[
        int | None,
        Number("number of likely tokens returned for each token", 0, MAX_TOP_LOGPROBS, whole=True),
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Field(description="whether to continue a last message of the assistant"),
    ] = None

    @property
    def max_tokens_field(self) -> str:
        """OpenAI's newer name has priority."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"

    @property
    def likely_tokens(self) -> int | None:
        """From `logprobs` and `top_logprobs`."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def answer_prefix(self) -> str | None:
        """Text of the assistant's last message if it is to be continued."""
        last = self.messages[-1]
        can_continue = last.role == "assistant" and not last.tool_calls
        return last.text if can_continue and self.continue_final_message is not False else None

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise _field_error("top_logprobs", "it requires logprobs to be true")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise _field_error("continue_final_message", "the last message is not the assistant's")
        has_schema = self.response_format and self.response_format.answer_schema is not None
        if self.answer_prefix and has_schema:
            raise _field_error(
                "response_format",
                "JSON cannot continue the text of a last message of the assistant",
            )
        return self


class TextRequest(CompletionRequest):
    """A text completion request."""

    prompt: PromptInput
    logprobs: Annotated[
        int | None,
        Number(
            "number of likely tokens returned for each token, with log-probabilities",
            0,
            MAX_TOP_LOGPROBS,
            whole=True,
            special=(False,),
        ),
    ] = None

    @property
    def likely_tokens(self) -> int | None:
        """From `logprobs`."""
        return self.logprobs
