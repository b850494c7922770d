"""The tokenizer inside a GGUF file, with what hq's prompt forms ask of a transformers tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.tokens import TokenType
from hq.llama.model import LlamaModel


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that a text is searched for before it is split."""

    content: str
    special: bool


class GGUFTokenizer:
    """llama.cpp's own tokenization, and the file's chat template."""

    def __init__(self, file: GGUFFile, model: LlamaModel) -> None:
        self._file, self._model = file, model
        self.name_or_path = str(file.path)
        self.piece = cache(model.piece)  # bytes of a token; an answer asks for them at every step

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Token ids; special tokens written in the text count as such."""
        return {"input_ids": self._model.tokenize(text, add_special_tokens)}

    def plain(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are letters like any others."""
        return self._model.tokenize(text, add_special=False, parse_special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no whole characters are replaced."""
        return b"".join(map(self.piece, ids)).decode(errors="replace")

    @property
    def chat_template(self) -> str:
        """Jinja source, empty where the file has none."""
        return str(self._file.metadata.get("tokenizer.chat_template", ""))

    @property
    def eos_token_id(self) -> list[int]:
        """Every token that ends a generation."""
        return sorted(self._model.ends)

    @property
    def all_special_ids(self) -> list[int]:
        """Those, as none else ends a response."""
        return self.eos_token_id

    @cached_property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The tokens that are no pieces of text: those that control the model, and a user's own."""
        types = self._file.metadata.get("tokenizer.ggml.token_type", ())
        added = (TokenType.CONTROL, TokenType.USER_DEFINED)
        return {
            id: AddedToken(token, kind == TokenType.CONTROL)
            for id, (token, kind) in enumerate(zip(self._file.tokens, types, strict=False))  # type: ignore[arg-type]
            if kind in added
        }

    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        """The messages as the template writes them.

        Raises HQError for a template that does not render, or is asked to be tokenized.
        """
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        assert not tokenize

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        values: dict[str, Any] = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "raise_exception": refuse,
            "bos_token": self._special("bos"),
            "eos_token": self._special("eos"),
        }
        try:
            return environment.from_string(self.chat_template).render(values)
        except TemplateError as error:
            raise HQError(
                f"The chat template of {self._file.path} cannot be rendered ({error}): use "
                "--form few-shot."
            ) from error

    def _special(self, name: str) -> str:
        token = self._file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if not isinstance(token, int):
            return ""
        return self._model.piece(token, special=True).decode(errors="replace")
