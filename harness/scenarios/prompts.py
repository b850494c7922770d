"""Prompt forms: how a question becomes token ids, and where the response to it ends."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from hq.errors import HQError
from hq.models.encoding import PLACEHOLDER, Encoder, bare_ids, render_chat
from hq.registry import Registry

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase as Tokenizer

Shots = Sequence[tuple[str, str]]

# General knowledge, four types of answer; none is a question of a scenario.
DEFAULT_SHOTS: Shots = (
    ("What is the largest planet in the Solar System?", "Jupiter"),
    ("Who wrote the play Hamlet?", "William Shakespeare"),
    ("In which year did World War II end?", "1945"),
    ("What is the chemical formula of water?", "H2O"),
)


class PromptForm(Protocol):
    """How a question is put to a model."""

    stop_strings: tuple[str, ...]

    def encode(self, tokenizer: "Tokenizer", question: str, before: Shots = ()) -> list[int]:
        """Return the prompt's token ids with special tokens; `before` has the earlier turns."""
        ...

    def stop_ids(self, tokenizer: "Tokenizer") -> frozenset[int]:
        """Return the tokens that end a response."""
        ...


FORMS: Registry[Callable[[Shots], PromptForm]] = Registry("prompt form")


def form(name: str, shots: Shots = ()) -> PromptForm:
    """Return the prompt form of this name.

    Args:
        name: "few-shot", "plain" or "chat".
        shots: (question, answer) pairs; the form's default ones if empty.

    Raises:
        HQError: If the form is unknown or does not accept shots.
    """
    return FORMS[name](shots)


class FewShot:
    """Solved examples, then the question; suits base models too. A response is one line."""

    stop_strings: tuple[str, ...] = ("\n",)
    labels = ("Q", "A")

    def __init__(self, shots: Shots = ()) -> None:
        self._shots = tuple(shots or DEFAULT_SHOTS)

    def encode(
        self, tokenizer: "Tokenizer", question: str, before: Shots = (), begun: str = ""
    ) -> list[int]:
        """Return the prompt's token ids, with the first token that the tokenizer adds, if any.

        Args:
            tokenizer: The model's tokenizer.
            question: The question.
            before: Earlier (question, answer) turns.
            begun: The beginning of the answer, to be continued.
        """
        encoder = Encoder(tokenizer)
        asks, says = self.labels
        turns = [(encoder.user(q), encoder.user(a)) for q, a in (*self._shots, *before)]
        examples = "".join(f"{asks}: {q}\n{says}: {a}\n\n" for q, a in turns)
        # The prompt ends without a space: tokenizers join it to the answer's first word.
        answer = f" {encoder.user(begun)}" if begun else ""
        return encoder.text(f"{examples}{asks}: {encoder.user(question)}\n{says}:{answer}")

    def stop_ids(self, tokenizer: "Tokenizer") -> frozenset[int]:
        """Return the end-of-text token."""
        return _end_of_text(tokenizer)


class Plain(FewShot):
    """The question alone; suits base models too. A response is one line."""

    labels = ("Question", "Answer")

    def __init__(self, shots: Shots = ()) -> None:
        if shots:
            raise HQError("The prompt form 'plain' takes no shots: use 'few-shot' or remove them.")
        self._shots = ()


class Chat:
    """The question as a user message in the tokenizer's chat template."""

    stop_strings: tuple[str, ...] = ()

    def __init__(self, shots: Shots = ()) -> None:
        if shots:
            raise HQError("The prompt form 'chat' takes no shots: use 'few-shot' or remove them.")

    def encode(self, tokenizer: "Tokenizer", question: str, before: Shots = ()) -> list[int]:
        """Return the template's token ids, up to where the assistant answers.

        Raises HQError if the tokenizer has no chat template.
        """
        messages = [
            {"role": role, "content": text}
            for turn in before
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        messages.append({"role": "user", "content": question})
        return Encoder(tokenizer).chat(messages, add_generation_prompt=True)

    def stop_ids(self, tokenizer: "Tokenizer") -> frozenset[int]:
        """Return the end-of-text token and the special token that ends the template's answers."""
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACEHOLDER}]
        _, _, rest = render_chat(tokenizer, turn).partition(PLACEHOLDER)
        special = _special(tokenizer)
        ends = next(([token] for token in bare_ids(tokenizer, rest) if token in special), [])
        return _end_of_text(tokenizer) | frozenset(ends)


FORMS.add("few-shot", FewShot)
FORMS.add("plain", Plain)
FORMS.add("chat", Chat)


def _special(tokenizer: "Tokenizer") -> set[int]:
    """Special tokens: the named ones, and those that only the vocabulary marks (Phi-3's turns)."""
    marked = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


def _end_of_text(tokenizer: "Tokenizer") -> frozenset[int]:
    end = tokenizer.eos_token_id
    return frozenset(end if isinstance(end, list) else [end]) if end is not None else frozenset()
