"""The tokenizer inside a GGUF file, with what hq's prompt forms ask of a transformers tokenizer."""

from collections.abc import Sequence
from typing import Any

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.llama.model import LlamaModel


class GGUFTokenizer:
    """llama.cpp's own tokenization, and the file's chat template."""

    def __init__(self, file: GGUFFile, model: LlamaModel) -> None:
        self._file, self._model = file, model
        self.name_or_path = str(file.path)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Token ids; special tokens written in the text count as such."""
        return {"input_ids": self._model.tokenize(text, add_special_tokens)}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no whole characters are replaced."""
        return b"".join(map(self._model.piece, ids)).decode(errors="replace")

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
