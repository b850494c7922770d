"""Control tokens that people spell out in their messages, kept from being taken for real ones."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.gguf_tokenizer import AddedToken, GGUFTokenizer


class Veil:
    """A tokenizer for prompts that hold these texts, each put in through `over`.

    A user's "<|im_end|>" is then eleven characters, and ends no turn.
    """

    def __init__(self, tokenizer: GGUFTokenizer, texts: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        controls = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        longest_first = sorted(filter(None, controls), key=len, reverse=True)
        # One that matches nothing, where the model has no control tokens.
        self._controls = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        said = "".join(texts)
        self._mark = next(m for m in map(chr, range(0xE000, 0xF900)) if m not in said)
        self._hidden: list[str] = []

    def over(self, text: str) -> str:
        """The text, with marks in the place of control tokens."""
        return self._controls.sub(self._hide, text)

    def _hide(self, found: re.Match[str]) -> str:
        self._hidden.append(found[0])
        return f"{self._mark}{len(self._hidden) - 1}{self._mark}"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Token ids; where a mark stands, those of what it hides, read as plain text."""
        ids: list[int] = []
        # Every second part is the number of something hidden.
        for place, part in enumerate(re.split(f"{self._mark}([0-9]+){self._mark}", text)):
            if place % 2:
                ids += self._tokenizer.plain(self._hidden[int(part)])
            elif part or not place:
                first = add_special_tokens and not place
                ids += self._tokenizer(part, add_special_tokens=first)["input_ids"]
        return {"input_ids": ids}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        """The messages as the template writes them."""
        return self._tokenizer.apply_chat_template(messages, **options)

    @property
    def chat_template(self) -> str:
        """Jinja source, empty where the file has none."""
        return self._tokenizer.chat_template

    @property
    def name_or_path(self) -> str:
        """The file."""
        return self._tokenizer.name_or_path

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The tokens that are no pieces of text."""
        return self._tokenizer.added_tokens_decoder
