"""Texts and conversations as token ids, for studies, monitors, the server and the Python API.

It takes a transformers tokenizer, or an object with the same interface that returns equal ids.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hq.errors import HQError, first_line

PLACEHOLDER = "hq writes this"  # no part of a special token, nor of any template
_LEAD = "\x02"
ChatMessages = Sequence[Mapping[str, Any]]


class Encoder:
    """One prompt. What people wrote goes in through `user`; the form's own text as it stands.

    A user's "<|im_end|>" is then letters like any others, and ends no turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known = _known(tokenizer)
        # Nobody could have written it. Letters and digits alone: a template may encode others.
        self._mark = f"hq{secrets.token_hex(8)}"
        self._hidden: list[str] = []

    def user(self, text: str) -> str:
        """The text, with marks in the place of control tokens."""
        return self._known.controls.sub(self._hide, text)

    def text(self, text: str) -> list[int]:
        """Token ids of a text to go on with, after the tokenizer's first token, if it has one.

        The last one that some tokenizers add is left out: it would end the answer at once. A text
        that begins with the first token itself gets no second one.
        """
        ids, opening = self._ids(text), self._known.opening
        return ids if opening and ids[: len(opening)] == opening else [*opening, *ids]

    def chat(self, messages: ChatMessages, **options: Any) -> list[int]:
        """Token ids of a conversation as the model's template writes it, special tokens and all.

        Raises HQError for a tokenizer without a template, and one that cannot be rendered.
        """
        return self._ids(render_chat(self._tokenizer, self._hidden_in(messages), **options))

    def continuation(self, text: str) -> list[int]:
        """Token ids of a text that goes on after a prompt: no token is added on either side."""
        return self._piece(text, plain=False, first=False) if text else []

    def continued(self, messages: ChatMessages, begun: str) -> list[int] | None:
        """Token ids up to the end of what the assistant has `begun` to say, for it to go on with.

        None where the template leaves out a last message of the assistant. Raises HQError as `chat`
        does.
        """
        answered = [*self._hidden_in(messages), {"role": "assistant", "content": PLACEHOLDER}]
        text, found, _ = render_chat(self._tokenizer, answered).rpartition(PLACEHOLDER)
        return self._ids(text + self.user(begun)) if found else None

    def _hidden_in(self, messages: ChatMessages) -> list[dict[str, Any]]:
        return [
            {key: self.user(value) if key == "content" else value for key, value in m.items()}
            for m in messages
        ]

    def _hide(self, found: re.Match[str]) -> str:
        self._hidden.append(found[0])
        return f"{self._mark}n{len(self._hidden) - 1}n"

    def _ids(self, text: str) -> list[int]:
        """Without a first token; where a mark stands, the ids of what it hides, as plain text."""
        ids: list[int] = []
        # Every second part is the number of something hidden.
        for place, part in enumerate(re.split(f"{self._mark}n([0-9]+)n", text)):
            hidden = place % 2 == 1
            written = self._hidden[int(part)] if hidden else part
            if written:
                ids += self._piece(written, plain=hidden, first=not ids)
        return ids

    def _piece(self, text: str, plain: bool, first: bool) -> list[int]:
        """Ids of a piece of the prompt. Only the first gets the space that SentencePiece adds."""
        if first or not self._known.lead:
            return bare_ids(self._tokenizer, text, plain)
        ids = bare_ids(self._tokenizer, _LEAD + text, plain)
        lead = self._known.lead
        return (
            ids[len(lead) :] if ids[: len(lead)] == lead else bare_ids(self._tokenizer, text, plain)
        )


def bare_ids(tokenizer: Any, text: str, plain: bool = False) -> list[int]:
    """Token ids and nothing around them; `plain` takes control tokens for letters."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
    return list(ids)


def render_chat(tokenizer: Any, messages: ChatMessages, **options: Any) -> str:
    """The messages as the tokenizer's template writes them, by transformers' own rendering.

    Raises HQError for a tokenizer without a template, and one that cannot be rendered.
    """
    name = _name(tokenizer)
    if not tokenizer.chat_template:
        raise HQError(
            f"The tokenizer of {name} has no chat template: use the prompt form 'few-shot'."
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template can fail at whatever Python can
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
class _Known:
    """What is worked out once for a tokenizer.

    `opening` is what it puts in front of a text. `lead` are the ids of a character that merges with
    nothing, if the tokenizer puts a space before every text: then one that goes on is read after
    that character, and both are left out.
    """

    controls: re.Pattern[str]
    opening: list[int]
    lead: list[int]


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def _known(tokenizer: Any) -> _Known:
    if tokenizer not in _KNOWN:
        controls = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        longest_first = sorted(filter(None, controls), key=len, reverse=True)
        # One that matches nothing, where the model has no control tokens.
        pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        lead, both = bare_ids(tokenizer, _LEAD), bare_ids(tokenizer, f"{_LEAD}a")
        same = both == [*lead, *bare_ids(tokenizer, "a")]
        _KNOWN[tokenizer] = _Known(pattern, _opening(tokenizer), [] if same else lead)
    return _KNOWN[tokenizer]


def _opening(tokenizer: Any) -> list[int]:
    bare, whole = bare_ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    raise HQError(
        f"The tokenizer of {_name(tokenizer)} makes {whole} of what is {bare} without "
        "special tokens: hq cannot tell which of them begin a text."
    )


def _name(tokenizer: Any) -> str:
    """The model's, without its folders: a client of the server may read it."""
    return Path(tokenizer.name_or_path or "this model").name
