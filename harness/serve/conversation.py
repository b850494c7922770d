"""A conversation as token ids, in the form that the bundle was validated with."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.models.gguf_tokenizer import GGUFTokenizer
from harness.scenarios.prompts import FewShot
from harness.serve.refusal import Refusal
from hq.models.encoding import PLACEHOLDER, Encoder, render_chat
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the assistant called in an earlier turn; the arguments are JSON."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said, and by whom: system, user, assistant or tool.

    `call_id` is which of the assistant's calls a tool answers.
    """

    role: str
    text: str
    calls: tuple[Call, ...] = ()
    call_id: str = ""


Encode = Callable[[GGUFTokenizer, Sequence[Turn], str | None], list[int]]
CONVERSATIONS: Registry[Encode] = Registry("prompt form")


def encode(
    form: str, tokenizer: GGUFTokenizer, turns: Sequence[Turn], begun: str | None = None
) -> list[int]:
    """Token ids up to where the assistant answers, or goes on with what it has `begun` to say.

    Raises HQError for an unknown form or a template that does not render, and Refusal for turns
    that the form has no place for.
    """
    return CONVERSATIONS[form](tokenizer, turns, begun)


@CONVERSATIONS.register("chat")
def _chat(tokenizer: GGUFTokenizer, turns: Sequence[Turn], begun: str | None) -> list[int]:
    """The model's own chat template."""
    _require_tools_shown(tokenizer, turns)
    encoder = Encoder(tokenizer)
    messages = [_message(turn, encoder.user) for turn in turns]
    if begun is None:
        return encoder.chat(messages, add_generation_prompt=True)
    ids = encoder.continued(messages, begun)
    if ids is None:
        raise Refusal(
            400,
            "The chat template leaves out a last message of the assistant: end with a user's.",
            param="messages",
        )
    return ids


def _message(turn: Turn, hide: Callable[[str], str] = str) -> dict[str, Any]:
    """A turn as templates expect it; `hide` is applied to what the template may copy of a call."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": hide(call.id),
                "type": "function",
                "function": {
                    "name": hide(call.name),
                    "arguments": _arguments(hide(call.arguments)),
                },
            }
            for call in turn.calls
        ]
    if turn.call_id:
        message["tool_call_id"] = hide(turn.call_id)
    return message


def _arguments(text: str) -> Any:
    """As templates expect them: an object, where the text is one."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


def _require_tools_shown(tokenizer: GGUFTokenizer, turns: Sequence[Turn]) -> None:
    """Raises Refusal for calls and results of tools that the template would leave out."""
    expected = sum(len(turn.calls) + (turn.role == "tool") for turn in turns)
    if not expected:
        return
    probed = [
        replace(
            turn,
            text=PLACEHOLDER if turn.role == "tool" else turn.text,
            calls=tuple(replace(call, name=PLACEHOLDER) for call in turn.calls),
        )
        for turn in turns
    ]
    if render_chat(tokenizer, [_message(turn) for turn in probed]).count(PLACEHOLDER) < expected:
        raise Refusal(
            400,
            "The model's chat template has no place for tool calls and their results: write them "
            "into the messages of user and assistant.",
            param="messages",
        )


@CONVERSATIONS.register("few-shot")
def _few_shot(tokenizer: GGUFTokenizer, turns: Sequence[Turn], begun: str | None) -> list[int]:
    """Solved examples, then what was asked and answered, then the question."""
    expected = ["user", "assistant"] * len(turns)
    for place, turn in enumerate(turns):
        if turn.role == expected[place] and not turn.calls:
            continue
        wrong = f"is the {turn.role}'s, not the {expected[place]}'s"
        raise Refusal(
            400,
            "The prompt form few-shot is questions and answers in turn: "
            f"message {place} {'calls tools' if turn.calls else wrong}.",
            param="messages",
        )
    if len(turns) % 2 == 0:
        raise Refusal(400, "The last message is no user's: nothing is asked.", param="messages")
    said = [turn.text for turn in turns]
    before = list(zip(said[:-1:2], said[1::2], strict=True))
    return FewShot().encode(tokenizer, said[-1], before, begun or "")
