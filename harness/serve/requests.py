"""What a client may ask, in OpenAI's wire format and hq's extension of it."""

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal, LiteralString, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from harness.serve.api.messages import Messages
from harness.serve.api.treatment import Body, Number, Only, ShortText, Text
from harness.serve.api.vendors import Ignored, Vendors
from harness.serve.generation.drawing import WINDOW, Drawing

MOST_ANSWERS = 8
MOST_LIKELY = 20  # tokens whose logprobs are told beside the chosen one's
MOST_STOPS = 64
STOP_LETTERS = 256

_TOKENS = Number("tokens of the answer, at most", 1, math.inf, whole=True, special=(-1,))
_SHIFT = "subtracted from the logits of tokens that the answer has already"


def _stops(value: Any) -> tuple[str, ...]:
    """Stop strings, of which a client may send one, several or none."""
    given = [value] if isinstance(value, str) and value else value or []
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise PydanticCustomError("stop", "expected a string, a list of strings, or null")
    if len(given) > MOST_STOPS:
        raise ValueError(f"at most {MOST_STOPS} strings are allowed, and there are {len(given)}")
    if not all(1 <= len(each) <= STOP_LETTERS for each in given):
        raise ValueError(f"each string has 1 to {STOP_LETTERS} characters")
    return tuple(given)


_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "maxLength": STOP_LETTERS},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": STOP_LETTERS},
            "maxItems": MOST_STOPS,
        },
        {"type": "null"},
    ]
}
Stops = Annotated[
    tuple[Text, ...],
    BeforeValidator(_stops),
    WithJsonSchema(_STOP_SCHEMA),
    Field(
        description=f"strings that end the answer: one, or a list of at most {MOST_STOPS}, "
        f"each of 1 to {STOP_LETTERS} characters"
    ),
]


def _one_prompt(value: Any) -> Any:
    """The prompt out of a list of one, of texts or of lists of token ids."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) != 1:
            raise ValueError(f"one prompt is answered at a time, and there are {len(value)}")
        value = value[0]
    ids = isinstance(value, list) and value and all(type(each) is int for each in value)
    if not isinstance(value, str) and not ids:
        raise ValueError("expected a text, token ids, or a list of one of them")
    return value


TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1), WithJsonSchema({})
]
_PROMPT_ITEMS = [
    {"type": "string"},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}},
]
Prompt = Annotated[
    Text | TokenIds,
    BeforeValidator(_one_prompt),
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
    Field(description="the text to continue, as a string or token ids, or a list of one of them"),
]


class StreamOptions(Body):
    """Whether a stream ends with the count of tokens."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None
    continuous_usage_stats: Annotated[
        Any, Only(False, says="tokens are counted at the end of a stream")
    ] = None


class Extension(Body):
    """hq's own part of a request: what H-Neurons are multiplied by, and whose rules hold."""

    alpha: Annotated[float, Field(ge=0)] | None = None
    domain: Text | None = None


class NamedSchema(Body):
    """A JSON schema as OpenAI's clients send it; it is always enforced."""

    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    name: Text | None = None
    description: Text | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """What form an answer has: text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    bare_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @property
    def schema_asked(self) -> dict[str, Any] | None:
        """The JSON schema that the answer has to follow; None for text."""
        if self.type == "text":
            return None
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return self.bare_schema if self.bare_schema is not None else {"type": "object"}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None and self.bare_schema is None:
            raise ValueError("json_schema.schema is missing")
        return self


class Asked(Vendors):
    """What both kinds of completion take. Temperature is 0 unless said, so answers repeat."""

    model: Annotated[Text | None, Field(description="the model's name; any if left out")] = None
    stream: Annotated[bool | None, Field(description="whether tokens are sent as they come")] = None
    stream_options: Annotated[
        StreamOptions | None, Field(description="`include_usage`: token counts at the end")
    ] = None
    max_tokens: Annotated[int | None, _TOKENS] = None
    n: Annotated[int | None, Number("answers", 1, MOST_ANSWERS, whole=True)] = None
    best_of: Annotated[
        int | None, Number("has to equal n, as no answer is dropped", 1, MOST_ANSWERS, whole=True)
    ] = None
    temperature: Annotated[
        float | None, Number("0, the default, always takes the likeliest token", 0, 2)
    ] = None
    top_p: Annotated[
        float | None, Number("probability of the likeliest tokens that are drawn from", 0, 1)
    ] = None
    top_k: Annotated[
        int | None,
        Number(
            "likeliest tokens that are drawn from; 0 for all",
            0,
            2**31 - 1,
            whole=True,
            special=(-1,),
        ),
    ] = None
    min_p: Annotated[
        float | None, Number("least probability, as a share of the likeliest token's", 0, 1)
    ] = None
    presence_penalty: Annotated[float | None, Number(_SHIFT, -2, 2)] = None
    frequency_penalty: Annotated[float | None, Number(f"{_SHIFT}, once for each time", -2, 2)] = (
        None
    )
    repeat_penalty: Annotated[
        float | None,
        Number("divides the logits of the last tokens of prompt and answer", 0, 10, above=True),
    ] = None
    repeat_last_n: Annotated[
        int | None,
        Number(
            f"tokens that repeat_penalty looks at, {WINDOW} by default; -1 for all",
            -1,
            2**31 - 1,
            whole=True,
        ),
    ] = None
    seed: Annotated[
        int | None,
        Number(
            "of the random numbers; drawn, and told, if left out",
            0,
            2**63 - 1,
            whole=True,
            special=(-1,),
        ),
    ] = None
    stop: Stops = ()
    response_format: Annotated[
        ResponseFormat | None,
        Field(description="`text`, `json_object`, or `json_schema` with a JSON schema"),
    ] = None
    user: Annotated[
        ShortText | None,
        Field(description="goes into the audit log; at most 256 characters"),
    ] = None
    hq: Annotated[
        Extension | None,
        Field(description="`alpha` scales the H-Neurons, `domain` names the policy's rule"),
    ] = None

    @property
    def tokens_field(self) -> str:
        """The name of the field that says how many tokens the answer may have."""
        return "max_tokens"

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens that the answer may have, where the client says it."""
        wanted: int | None = getattr(self, self.tokens_field)
        return wanted

    @property
    @abstractmethod
    def likely(self) -> int | None:
        """How many likely tokens are told beside each chosen one; None for no logprobs."""

    @property
    def answers(self) -> int:
        """How many are asked for."""
        return self.n or 1

    @property
    def extension(self) -> Extension:
        """The part of hq, with defaults."""
        return self.hq or Extension()

    @property
    def reports_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def drawing(self, seed: int) -> Drawing:
        """How tokens are drawn; `seed` for a request that has none."""
        names = [name for name in Drawing.__slots__ if getattr(self, name) is not None]
        return Drawing(**{"seed": seed} | {name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _none_dropped(self) -> Self:
        if self.best_of not in (None, self.answers):
            raise _of("best_of", "it has to equal n, as no answer is dropped")
        return self


def _of(field: str, message: LiteralString) -> PydanticCustomError:
    """An error that is found once the whole request is read, but is one field's."""
    return PydanticCustomError("value_error", message, {"field": field})


class ChatRequest(Asked):
    """A conversation to go on with."""

    messages: Messages
    max_completion_tokens: Annotated[int | None, _TOKENS] = None
    logprobs: Annotated[
        bool | None, Field(description="whether each token's log-probability is told")
    ] = None
    top_logprobs: Annotated[
        int | None, Number("likely tokens told beside the chosen one", 0, MOST_LIKELY, whole=True)
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Field(description="whether a last message of the assistant is continued, as it is"),
    ] = None

    @property
    def tokens_field(self) -> str:
        """OpenAI's new name goes before the old one."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"

    @property
    def likely(self) -> int | None:
        """By the two fields."""
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def begun(self) -> str | None:
        """What the assistant has begun to say, if the last message is to be continued."""
        last = self.messages[-1]
        goes_on = last.role == "assistant" and not last.tool_calls
        return last.text if goes_on and self.continue_final_message is not False else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise _of("top_logprobs", "logprobs has to be true for them")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise _of("continue_final_message", "the last message is not the assistant's")
        if self.begun and self.response_format and self.response_format.schema_asked is not None:
            raise _of(
                "response_format",
                "JSON is written from its beginning, and the last message has begun the answer",
            )
        return self


class TextRequest(Asked):
    """A text to go on with, as it stands."""

    prompt: Prompt
    logprobs: Annotated[
        int | None,
        Number(
            "likely tokens told beside each one, with log-probabilities",
            0,
            MOST_LIKELY,
            whole=True,
            special=(False,),
        ),
    ] = None

    @property
    def likely(self) -> int | None:
        """As many as are asked for."""
        return self.logprobs
