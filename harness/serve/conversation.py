"""A conversation as token ids, in the form that the bundle was validated with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.encoding import Encoder
from harness.gguf_tokenizer import GGUFTokenizer
from harness.prompts import FewShot
from harness.serve.refusal import Refusal
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said, and by whom: system, user or assistant."""

    role: str
    text: str


Encode = Callable[[Any, Sequence[Turn]], list[int]]
CONVERSATIONS: Registry[Encode] = Registry("prompt form")


def encode(form: str, tokenizer: GGUFTokenizer, turns: Sequence[Turn]) -> list[int]:
    """Token ids up to where the assistant answers.

    Raises HQError for an unknown form or a template that does not render, and Refusal for turns
    that the form has no place for.
    """
    return CONVERSATIONS[form](tokenizer, turns)


@CONVERSATIONS.register("chat")
def _chat(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """The model's own chat template."""
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return Encoder(tokenizer).chat(messages, add_generation_prompt=True)


@CONVERSATIONS.register("few-shot")
def _few_shot(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """Solved examples, then what was asked and answered, then the question."""
    expected = ["user", "assistant"] * len(turns)
    for place, turn in enumerate(turns):
        if turn.role != expected[place]:
            raise Refusal(
                400,
                "The prompt form few-shot is questions and answers in turn: "
                f"message {place} is the {turn.role}'s, not the {expected[place]}'s.",
                param="messages",
            )
    if len(turns) % 2 == 0:
        raise Refusal(400, "The last message is no user's: nothing is asked.", param="messages")
    said = [turn.text for turn in turns]
    before = list(zip(said[:-1:2], said[1::2], strict=True))
    return FewShot().encode(tokenizer, said[-1], before)
