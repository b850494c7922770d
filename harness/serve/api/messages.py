"""Messages of a chat, written by a client or copied from an earlier response of any server."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.serve.api.fields import UNSUPPORTED_FIELD, NeutralOnly, RequestModel, Text
from harness.serve.api.vendor_fields import Ignored


def _require_text_part(part: Any) -> Any:
    """Raise PydanticCustomError for a content part of another type, and name the type."""
    part_type = part.get("type") if isinstance(part, dict) else None
    if isinstance(part_type, str) and part_type != "text":
        raise PydanticCustomError(
            UNSUPPORTED_FIELD,
            "a message is text, not {part_type}",
            {"part_type": json.dumps(part_type)},
        )
    return part


class TextPart(RequestModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text
    cache_control: Ignored = None


class CalledFunction(RequestModel):
    """The function that the assistant called, and its arguments as JSON."""

    name: Text
    arguments: Text


class ToolCall(RequestModel):
    """A tool call of the assistant in an earlier turn."""

    id: Text | None = None
    type: Literal["function"] | None = None
    index: Ignored = None
    function: CalledFunction


class Message(RequestModel):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Annotated[TextPart, BeforeValidator(_require_text_part)]] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None
    name: Ignored = None
    # Fields of OpenAI's answers besides their text
    refusal: Annotated[Any, NeutralOnly("", message="put it into content")] = None
    audio: Annotated[Any, NeutralOnly(message="a message is text")] = None
    function_call: Annotated[Any, NeutralOnly({}, message="use tool_calls")] = None
    annotations: Ignored = None
    parsed: Ignored = None
    # Fields that other servers and client libraries add
    type: Annotated[Any, NeutralOnly("text", "message", message="a message is text")] = None
    id: Ignored = None
    reasoning: Ignored = None
    reasoning_content: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None
    provider_specific_fields: Ignored = None
    images: Annotated[Any, NeutralOnly([], message="a message is text")] = None
    experimental_attachments: Annotated[Any, NeutralOnly([], message="a message is text")] = None
    prefix: Annotated[
        Any, NeutralOnly(True, False, message="a last message of the assistant is continued")
    ] = None

    @property
    def text(self) -> str:
        """The message's complete text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @model_validator(mode="after")
    def _check_role_fields(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"the {self.role}'s message has no content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls belong to the assistant, not to the {self.role}")
        return self


MessageList = Annotated[list[Message], Field(min_length=1, description="the conversation")]
