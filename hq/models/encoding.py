"""Encodes texts and conversations as token ids, for studies, monitors, the server and the API.

The tokenizer is one of transformers, or an object with the same interface that returns equal ids.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hq.errors import HQError, first_line

PLACEHOLDER = "hq writes this"  # occurs in no special token and no template
_LEAD = "\x02"
ChatMessages = Sequence[Mapping[str, Any]]


class Encoder:
    """Encodes one prompt, in which text from users passes through `user`.

    Control tokens in such text, such as "<|im_end|>", are encoded as ordinary characters and end no
    turn. The text of the prompt form itself is encoded unchanged.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._facts = _facts(tokenizer)
        # Unpredictable; letters and digits only, as a template may escape other characters.
        self._mark = f"hq{secrets.token_hex(8)}"
        self._hidden: list[str] = []

    def user(self, text: str) -> str:
        """Return the text with marks in place of control tokens."""
        return self._facts.controls.sub(self._hide, text)

    def text(self, text: str) -> list[int]:
        """Return the token ids of a text to continue, with the tokenizer's BOS token if it has one.

        The final token that some tokenizers add is omitted, as it would end the answer. A text that
        begins with the BOS token does not get a second one.
        """
        ids, opening = self._ids(text), self._facts.opening
        return ids if opening and ids[: len(opening)] == opening else [*opening, *ids]

    def chat(self, messages: ChatMessages, **options: Any) -> list[int]:
        """Return the token ids of a conversation in the model's chat template.

        Raises HQError if the tokenizer has no template or the template cannot be rendered.
        """
        return self._ids(render_chat(self._tokenizer, self._hidden_in(messages), **options))

    def continuation(self, text: str) -> list[int]:
        """Return the token ids of a text that follows a prompt, without special tokens."""
        return self._piece(text, plain=False, first=False) if text else []

    def continued(self, messages: ChatMessages, begun: str) -> list[int] | None:
        """Return the token ids of a conversation that ends with the beginning of an answer.

        None if the template omits a final message of the assistant. Raises HQError as `chat` does.
        """
        answered = [*self._hidden_in(messages), {"role": "assistant", "content": PLACEHOLDER}]
        text, placeholder, _ = render_chat(self._tokenizer, answered).rpartition(PLACEHOLDER)
        return self._ids(text + self.user(begun)) if placeholder else None

    def _hidden_in(self, messages: ChatMessages) -> list[dict[str, Any]]:
        return [
            {key: self.user(value) if key == "content" else value for key, value in m.items()}
            for m in messages
        ]

    def _hide(self, control: re.Match[str]) -> str:
        self._hidden.append(control[0])
        return f"{self._mark}n{len(self._hidden) - 1}n"

    def _ids(self, text: str) -> list[int]:
        """Return ids without a BOS token; marks become the ids of the hidden text as characters."""
        ids: list[int] = []
        # Every second part is the number of a hidden text.
        for index, part in enumerate(re.split(f"{self._mark}n([0-9]+)n", text)):
            hidden = index % 2 == 1
            piece = self._hidden[int(part)] if hidden else part
            if piece:
                ids += self._piece(piece, plain=hidden, first=not ids)
        return ids

    def _piece(self, text: str, plain: bool, first: bool) -> list[int]:
        """Return the ids of a piece; SentencePiece adds a space before the first piece only."""
        if first or not self._facts.lead:
            return bare_ids(self._tokenizer, text, plain)
        ids = bare_ids(self._tokenizer, _LEAD + text, plain)
        lead = self._facts.lead
        return (
            ids[len(lead) :] if ids[: len(lead)] == lead else bare_ids(self._tokenizer, text, plain)
        )


def bare_ids(tokenizer: Any, text: str, plain: bool = False) -> list[int]:
    """Return token ids without BOS and EOS; `plain` encodes control tokens as characters."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
    return list(ids)


def render_chat(tokenizer: Any, messages: ChatMessages, **options: Any) -> str:
    """Return the messages in the tokenizer's chat template, as transformers renders it.

    Raises HQError if the tokenizer has no template or the template cannot be rendered.
    """
    name = _name(tokenizer)
    if not tokenizer.chat_template:
        raise HQError(
            f"The tokenizer of {name} has no chat template: use the prompt form 'few-shot'."
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # templates can raise any exception
        raise HQError(
            f"The chat template of {name} cannot be rendered ({first_line(error)}): use the prompt "
            "form few-shot."
        ) from error


def end_tokens_of(tokenizer: Any) -> frozenset[int]:
    """Tokens that end a response: of the text, and of the assistant's turn in the chat template.

    Raises HQError for a template that cannot be rendered.
    """
    end = tokenizer.eos_token_id
    ends = set(end if isinstance(end, list) else [end]) - {None}
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACEHOLDER}]
        _, _, after = render_chat(tokenizer, turn).partition(PLACEHOLDER)
        special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        ends |= set([token for token in bare_ids(tokenizer, after) if token in special][:1])
    return frozenset(ends)


@dataclass(frozen=True, slots=True)
class _TokenizerFacts:
    """Properties of a tokenizer, computed once.

    `controls` matches control tokens. `opening` has the ids that the tokenizer puts before a text.
    `lead` has the ids of a character that never merges, if the tokenizer puts a space before every
    text: a later piece is encoded after this character, whose ids are then removed.
    """

    controls: re.Pattern[str]
    opening: list[int]
    lead: list[int]


_FACTS: WeakKeyDictionary[Any, _TokenizerFacts] = WeakKeyDictionary()


def _facts(tokenizer: Any) -> _TokenizerFacts:
    if tokenizer not in _FACTS:
        controls = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        longest_first = sorted(filter(None, controls), key=len, reverse=True)
        # Without control tokens, a pattern that matches nothing.
        pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        lead, both = bare_ids(tokenizer, _LEAD), bare_ids(tokenizer, f"{_LEAD}a")
        adds_no_space = both == [*lead, *bare_ids(tokenizer, "a")]
        _FACTS[tokenizer] = _TokenizerFacts(
            pattern, _opening(tokenizer), [] if adds_no_space else lead
        )
    return _FACTS[tokenizer]


def _opening(tokenizer: Any) -> list[int]:
    bare, full = bare_ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    raise HQError(
        f"The tokenizer of {_name(tokenizer)} encodes 'a' as {full}, and as {bare} without special "
        "tokens, so its BOS token is unknown: copy the files of the tokenizer again."
    )


def _name(tokenizer: Any) -> str:
    """Return the model's name without folders, as clients of the server may read it."""
    return Path(tokenizer.name_or_path or "this model").name
