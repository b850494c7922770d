"""Control tokens that people spell out in their messages, kept from being taken for real ones."""

import re
import secrets
from typing import Any

from harness.gguf_tokenizer import GGUFTokenizer


class Veil:
    """A tokenizer for a prompt whose texts were put in through `over`.

    A user's "<|im_end|>" is then letters like any others, and ends no turn.
    """

    def __init__(self, tokenizer: GGUFTokenizer) -> None:
        self._tokenizer = tokenizer
        controls = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        longest_first = sorted(filter(None, controls), key=len, reverse=True)
        # One that matches nothing, where the model has no control tokens.
        self._controls = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # Nobody could have written it. Only letters and digits: a template may encode the others.
        self._mark = f"hq{secrets.token_hex(8)}"
        self._hidden: list[str] = []

    def over(self, text: str) -> str:
        """The text, with marks in the place of control tokens."""
        return self._controls.sub(self._hide, text)

    def _hide(self, found: re.Match[str]) -> str:
        self._hidden.append(found[0])
        return f"{self._mark}n{len(self._hidden) - 1}n"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Token ids; where a mark stands, those of what it hides, read as plain text."""
        ids: list[int] = []
        # Every second part is the number of something hidden.
        for place, part in enumerate(re.split(f"{self._mark}n([0-9]+)n", text)):
            if place % 2:
                ids += self._tokenizer.plain(self._hidden[int(part)])
            elif part or not place:
                first = add_special_tokens and not place
                ids += self._tokenizer(part, add_special_tokens=first)["input_ids"]
        return {"input_ids": ids}

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The messages as the template writes them."""
        return self._tokenizer.apply_chat_template(messages, **options)
