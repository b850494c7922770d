"""Prompt forms: how a question becomes token ids, and where a response to it ends."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from hq.errors import HQError
from hq.models.encoding import PLACEHOLDER, Encoder, bare_ids, render_chat
from hq.registry import Registry

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase as Tokenizer

Shots = Sequence[tuple[str, str]]

# General, of four types of answer, and no question of a scenario.
DEFAULT_SHOTS: Shots = (
    ("What is the largest planet in the Solar System?", "Jupiter"),
    ("Who wrote the play Hamlet?", "William Shakespeare"),
    ("In which year did World War II end?", "1945"),
    ("What is the chemical formula of water?", "H2O"),
)


class PromptForm(Protocol):
    """One way to ask."""

    stop_strings: tuple[str, ...]

    def encode(self, tokenizer: "Tokenizer", question: str, before: Shots = ()) -> list[int]:
        """Token ids of the prompt, special tokens included; `before` is what was said already."""
        ...

    def stop_ids(self, tokenizer: "Tokenizer") -> frozenset[int]:
        """Tokens that end a response."""
        ...


FORMS: Registry[Callable[[Shots], PromptForm]] = Registry("prompt form")


def form(name: str, shots: Shots = ()) -> PromptForm:
    """The form of that name. `shots` are (question, answer) pairs; () stands for the default ones.

    Raises HQError for an unknown form, and for shots given to a form that has none.
    """
    return FORMS[name](shots)


class FewShot:
    """Solved examples, then the question: for base models too. A response ends with its line."""

    stop_strings: tuple[str, ...] = ("\n",)

    def __init__(self, shots: Shots = ()) -> None:
        self._shots = tuple(shots or DEFAULT_SHOTS)

    def encode(
        self, tokenizer: "Tokenizer", question: str, before: Shots = (), begun: str = ""
    ) -> list[int]:
        """Ids after the first token that the tokenizer adds by itself, if it adds one.

        `begun` is the beginning of the answer, where there is one to go on with.
        """
        encoder = Encoder(tokenizer)
        asked = [(encoder.user(q), encoder.user(a)) for q, a in (*self._shots, *before)]
        said = "".join(f"Q: {q}\nA: {a}\n\n" for q, a in asked)
        # The prompt ends without a space: tokenizers join it to the answer's first word.
        answer = f" {encoder.user(begun)}" if begun else ""
        return encoder.text(f"{said}Q: {encoder.user(question)}\nA:{answer}")

    def stop_ids(self, tokenizer: "Tokenizer") -> frozenset[int]:
        """The end-of-text token."""
        return _end_of_text(tokenizer)


class Chat:
    """The question as a user's message in the tokenizer's own chat template."""

    stop_strings: tuple[str, ...] = ()

    def __init__(self, shots: Shots = ()) -> None:
        if shots:
            raise HQError("The prompt form 'chat' takes no shots: use 'few-shot', or drop them.")

    def encode(self, tokenizer: "Tokenizer", question: str, before: Shots = ()) -> list[int]:
        """Ids as the template writes them, up to where the assistant answers.

        Raises HQError for a tokenizer without a chat template.
        """
        messages = [
            {"role": role, "content": text}
            for turn in before
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        messages.append({"role": "user", "content": question})
        return Encoder(tokenizer).chat(messages, add_generation_prompt=True)

    def stop_ids(self, tokenizer: "Tokenizer") -> frozenset[int]:
        """The end-of-text token, and the special token that the template puts after an answer."""
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACEHOLDER}]
        _, _, rest = render_chat(tokenizer, turn).partition(PLACEHOLDER)
        special = _special(tokenizer)
        ends = next(([token] for token in bare_ids(tokenizer, rest) if token in special), [])
        return _end_of_text(tokenizer) | frozenset(ends)


FORMS.add("few-shot", FewShot)
FORMS.add("chat", Chat)


def _special(tokenizer: "Tokenizer") -> set[int]:
    """Special tokens, named ones and those that only the vocabulary marks so (Phi-3's turns)."""
    marked = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


def _end_of_text(tokenizer: "Tokenizer") -> frozenset[int]:
    end = tokenizer.eos_token_id
    return frozenset(end if isinstance(end, list) else [end]) if end is not None else frozenset()
