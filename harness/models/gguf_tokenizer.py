"""The tokenizer inside a GGUF file, with the interface that `hq.models.encoding` needs.

Ids and templates come from the very tokenizer that a study of the file uses
(`hq.gguf.read_tokenizer`), so that a monitor sees a prompt as the study did. llama.cpp spells the
answer and says what ends it.
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
    """A file's tokenizer. Any thread may use it.

    Raises HQError for a tokenizer that hq does not read.
    """

    def __init__(self, file: GGUFFile, model: LlamaModel) -> None:
        self._file, self._model = file, model
        self.name_or_path = str(file.path)
        self.piece = cache(model.piece)  # bytes of a token; an answer asks for them at every step
        self._theirs = tokenizer_of(file)
        core = self._theirs.backend_tokenizer
        # Two, as they are asked from several threads at once and a setting is none of a call.
        self._cores = {plain: Tokenizer.from_str(core.to_str()) for plain in (False, True)}
        self._cores[True].encode_special_tokens = True

    def __call__(
        self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> dict[str, list[int]]:
        """Token ids. Special tokens written in the text count as such unless they are split."""
        core = self._cores[split_special_tokens]
        return {"input_ids": core.encode(text, add_special_tokens=add_special_tokens).ids}

    def plain(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are letters like any others."""
        return self(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

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
        """The tokens that a text is searched for before it is split; some are special."""
        found: Mapping[int, AddedToken] = self._theirs.added_tokens_decoder
        return found

    def apply_chat_template(self, messages: ChatMessages, tokenize: bool, **options: Any) -> str:
        """The messages as the template writes them: by transformers, as in a study."""
        assert not tokenize
        text: str = self._theirs.apply_chat_template(
            messages, tokenize=False, chat_template=self.chat_template, **options
        )
        return text
