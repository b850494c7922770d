"""Messages of a chat, as clients send them and as they received them from another server."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.serve.api.treatment import UNSUPPORTED, Body, Only, Text
from harness.serve.api.vendors import Ignored


def _text_part(part: Any) -> Any:
    """Raises PydanticCustomError for a part of another type, and names the type."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise PydanticCustomError(
            UNSUPPORTED, "a message is text, not {kind}", {"kind": json.dumps(kind)}
        )
    return part


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text
    cache_control: Ignored = None


class CalledFunction(Body):
    """The function that an assistant called, and its arguments as JSON."""

    name: Text
    arguments: Text


class ToolCall(Body):
    """A call by an assistant, of an earlier turn."""

    id: Text | None = None
    type: Literal["function"] | None = None
    index: Ignored = None
    function: CalledFunction


class Message(Body):
    """What was said, and by whom."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Annotated[TextPart, BeforeValidator(_text_part)]] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None
    name: Ignored = None
    # What OpenAI's answers hold beside their text
    refusal: Annotated[Any, Only("", says="put it into content")] = None
    audio: Annotated[Any, Only(says="a message is text")] = None
    function_call: Annotated[Any, Only({}, says="use tool_calls")] = None
    annotations: Ignored = None
    parsed: Ignored = None
    # What other servers and client libraries add
    type: Annotated[Any, Only("text", "message", says="a message is text")] = None
    id: Ignored = None
    reasoning: Ignored = None
    reasoning_content: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None
    provider_specific_fields: Ignored = None
    images: Annotated[Any, Only([], says="a message is text")] = None
    experimental_attachments: Annotated[Any, Only([], says="a message is text")] = None
    prefix: Annotated[
        Any, Only(True, False, says="a last message of the assistant is continued")
    ] = None

    @property
    def text(self) -> str:
        """All its text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"the {self.role}'s message has no content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls are the assistant's, not the {self.role}'s")
        return self


Messages = Annotated[list[Message], Field(min_length=1, description="the conversation")]
