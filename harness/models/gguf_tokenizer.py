"""The tokenizer of a GGUF file, with the interface that `hq.models.encoding` needs.

Token ids and templates come from the tokenizer that a study of the file uses
(`hq.gguf.read_tokenizer`), so that a monitor encodes prompts in the same way. llama.cpp decodes the
answers and has the list of tokens that end them.
"""

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer

from hq.gguf.file import GGUFFile
from hq.gguf.read_tokenizer import tokenizer_of
from hq.llamacpp.model import LlamaModel
from hq.models.encoding import ChatMessages


class GGUFTokenizer:
    """The tokenizer of a file; thread-safe.

    Raises HQError if hq cannot read the tokenizer.
    """

    def __init__(self, file: GGUFFile, model: LlamaModel) -> None:
        self._file, self._model = file, model
        self.name_or_path = str(file.path)
        self.piece = cache(model.piece)  # bytes of a token, cached as every step needs them
        self._tokenizer = tokenizer_of(file)
        core = self._tokenizer.backend_tokenizer
        # Two copies: threads share them, and the setting cannot be passed with a call.
        self._cores = {plain: Tokenizer.from_str(core.to_str()) for plain in (False, True)}
        self._cores[True].encode_special_tokens = True

    def __call__(
        self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> dict[str, list[int]]:
        """Return token ids; special tokens in the text are recognized unless they are split."""
        core = self._cores[split_special_tokens]
        return {"input_ids": core.encode(text, add_special_tokens=add_special_tokens).ids}

    def plain(self, text: str) -> list[int]:
        """Return token ids with special tokens encoded as ordinary characters."""
        return self(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; incomplete characters are replaced."""
        return b"".join(map(self.piece, ids)).decode(errors="replace")

    @property
    def chat_template(self) -> str:
        """Jinja source; empty if the file has none."""
        return str(self._file.metadata.get("tokenizer.chat_template", ""))

    @property
    def eos_token_id(self) -> list[int]:
        """Every token that ends a generation."""
        return sorted(self._model.ends)

    @property
    def all_special_ids(self) -> list[int]:
        """The tokens that end a generation."""
        return self.eos_token_id

    @cached_property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The tokens that are matched before a text is split, special ones included."""
        added: Mapping[int, AddedToken] = self._tokenizer.added_tokens_decoder
        return added

    def apply_chat_template(self, messages: ChatMessages, tokenize: bool, **options: Any) -> str:
        """Return the messages in the chat template, rendered by transformers as in a study."""
        assert not tokenize
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=self.chat_template, **options
        )
        return text
