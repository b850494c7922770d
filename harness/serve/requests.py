"""What a client may ask, in OpenAI's wire format and hq's extension of it.

Types are strict, and a parameter that is not here is refused: what a client asks for is done or
answered with an error. Parameters that have one harmless value may be sent with that one.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema


def _encodable(text: str) -> str:
    """JSON can spell halves of characters, which are no text."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("text with half of a surrogate pair")
    return text


def _no(value: bool) -> bool:
    if value:
        raise ValueError("false, as nothing else can be had")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
# Not literals: to those, 0.0 is False, and true is 1.
No = Annotated[bool, AfterValidator(_no), WithJsonSchema({"type": "boolean", "const": False})]
One = Annotated[int, Field(ge=1, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
StopString = Annotated[Text, Field(min_length=1, max_length=64)]


class Wire(BaseModel):
    """Frozen, strict, without unknown fields, and with finite numbers only."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(Wire):
    """A part of a message; there are no others than text."""

    type: Literal["text"]
    text: Text


class Message(Wire):
    """What was said, and by whom. An assistant's may come as a client has received it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None
    annotations: Annotated[list[Text], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        """All its text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(Wire):
    """Whether a stream ends with the count of tokens."""

    include_usage: bool = False


class Extension(Wire):
    """hq's own part of a request: what H-Neurons are multiplied by, and whose rules hold."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    domain: Text | None = None


class Asked(Wire):
    """What both kinds of completion take. Temperature is 0 unless said, so answers repeat."""

    model: Text | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    user: Annotated[Text, Field(max_length=256)] | None = None
    hq: Extension = Extension()
    n: One | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens that the answer may have, where the client says it."""
        return self.max_tokens

    @property
    def reports_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Asked):
    """A conversation to go on with."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: No | None = None
    store: No | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """By either name."""
        return self.max_completion_tokens or self.max_tokens


class TextRequest(Asked):
    """A text to go on with, as it stands."""

    prompt: Text
    echo: No | None = None
    best_of: One | None = None
    logprobs: None = None
