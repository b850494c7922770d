"""Conversations as token ids, in the prompt form that the bundle was validated with."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.models.gguf_tokenizer import GGUFTokenizer
from harness.scenarios.prompts import FewShot, Plain
from harness.serve.api.errors import APIError
from hq.models.encoding import PLACEHOLDER, Encoder, render_chat
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function that the assistant called in an earlier turn; the arguments are JSON."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; the role is system, user, assistant or tool.

    `call_id` names the assistant's call to which a tool's turn responds.
    """

    role: str
    text: str
    calls: tuple[FunctionCall, ...] = ()
    call_id: str = ""


ConversationEncoder = Callable[[GGUFTokenizer, Sequence[Turn], str | None], list[int]]
CONVERSATION_ENCODERS: Registry[ConversationEncoder] = Registry("prompt form")


def encode_conversation(
    form: str, tokenizer: GGUFTokenizer, turns: Sequence[Turn], answer_prefix: str | None = None
) -> list[int]:
    """Return the token ids of a prompt whose next token begins or continues the assistant's answer.

    Args:
        answer_prefix: text of the answer that is to be continued; None for a new answer.

    Raises HQError if the form is unknown or the chat template cannot be rendered, and APIError if
    the form does not support the turns.
    """
    return CONVERSATION_ENCODERS[form](tokenizer, turns, answer_prefix)


@CONVERSATION_ENCODERS.register("chat")
def _encode_chat(
    tokenizer: GGUFTokenizer, turns: Sequence[Turn], answer_prefix: str | None
) -> list[int]:
    """By the model's own chat template."""
    _require_tool_support(tokenizer, turns)
    encoder = Encoder(tokenizer)
    messages = [_template_message(turn, encoder.user) for turn in turns]
    if answer_prefix is None:
        return encoder.chat(messages, add_generation_prompt=True)
    ids = encoder.continued(messages, answer_prefix)
    if ids is None:
        raise APIError(
            400,
            "The chat template omits a last message of the assistant: end with a user's message.",
            param="messages",
        )
    return ids


def _template_message(turn: Turn, escape: Callable[[str], str] = str) -> dict[str, Any]:
    """Return a turn as chat templates expect it.

    Args:
        escape: applied to the parts of tool calls that the template may copy.
    """
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": escape(call.id),
                "type": "function",
                "function": {
                    "name": escape(call.name),
                    "arguments": _template_arguments(escape(call.arguments)),
                },
            }
            for call in turn.calls
        ]
    if turn.call_id:
        message["tool_call_id"] = escape(turn.call_id)
    return message


def _template_arguments(text: str) -> Any:
    """Return arguments as chat templates expect them: an object if the text is one."""
    try:
        arguments = json.loads(text)
    except ValueError:
        return text
    return arguments if isinstance(arguments, dict) else text


def _require_tool_support(tokenizer: GGUFTokenizer, turns: Sequence[Turn]) -> None:
    """Raise APIError if the chat template would omit tool calls or their results."""
    expected = sum(len(turn.calls) + (turn.role == "tool") for turn in turns)
    if not expected:
        return
    probe_turns = [
        replace(
            turn,
            text=PLACEHOLDER if turn.role == "tool" else turn.text,
            calls=tuple(replace(call, name=PLACEHOLDER) for call in turn.calls),
        )
        for turn in turns
    ]
    messages = [_template_message(turn) for turn in probe_turns]
    if render_chat(tokenizer, messages).count(PLACEHOLDER) < expected:
        raise APIError(
            400,
            "The model's chat template does not support tool calls and their results: write them "
            "into the messages of user and assistant.",
            param="messages",
        )


@CONVERSATION_ENCODERS.register("few-shot")
def _encode_few_shot(
    tokenizer: GGUFTokenizer, turns: Sequence[Turn], answer_prefix: str | None
) -> list[int]:
    """Solved examples, then earlier questions and answers, then the question."""
    return _encode_lines("few-shot", FewShot(), tokenizer, turns, answer_prefix)


@CONVERSATION_ENCODERS.register("plain")
def _encode_plain(
    tokenizer: GGUFTokenizer, turns: Sequence[Turn], answer_prefix: str | None
) -> list[int]:
    """Earlier questions and answers, then the question."""
    return _encode_lines("plain", Plain(), tokenizer, turns, answer_prefix)


def _encode_lines(
    name: str,
    form: FewShot,
    tokenizer: GGUFTokenizer,
    turns: Sequence[Turn],
    answer_prefix: str | None,
) -> list[int]:
    expected_roles = ["user", "assistant"] * len(turns)
    for index, turn in enumerate(turns):
        if turn.role == expected_roles[index] and not turn.calls:
            continue
        fault = f"is the {turn.role}'s, not the {expected_roles[index]}'s"
        raise APIError(
            400,
            f"The prompt form {name} requires questions and answers in turn: "
            f"message {index} {'calls tools' if turn.calls else fault}.",
            param="messages",
        )
    if len(turns) % 2 == 0:
        raise APIError(
            400, "The last message must be a user's: it is the question.", param="messages"
        )
    texts = [turn.text for turn in turns]
    earlier = list(zip(texts[:-1:2], texts[1::2], strict=True))
    return form.encode(tokenizer, texts[-1], earlier, answer_prefix or "")
