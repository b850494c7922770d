"""JSON answers by a schema: llguidance tells which tokens are allowed next."""

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from harness.models.gguf_tokenizer import GGUFTokenizer
from hq.errors import HQError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

# White space as in Python's json.dumps: where it is free, a model could write it endlessly.
_JSON_FORMAT: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,  # a keyword that cannot be enforced is an error
}


class JSONGrammar:
    """The grammar state of one answer. Call `allowed` before and `accept` after each token."""

    def __init__(self, matcher: "LLMatcher", end_tokens: frozenset[int], vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._end_tokens = sorted(end_tokens)

    def allowed(self) -> Bool[np.ndarray, " vocab"]:
        """Return the mask of allowed next tokens; end tokens are allowed once the JSON is complete.

        Raises HQError if the schema became too complex.
        """
        complete = self._matcher.is_accepting()
        if self._matcher.is_stopped():
            mask = np.zeros(self._vocabulary, dtype=bool)
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            mask = np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(bool)
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0]
            raise HQError(f"The JSON schema could not be followed: {reason}.")
        mask[self._end_tokens] = complete
        return mask

    def accept(self, token: int) -> None:
        """Advance by one token. A token that ends the answer is not part of the JSON."""
        if token not in self._end_tokens:
            self._matcher.consume_token(token)


class GrammarCompiler:
    """Compiles JSON schemas for one tokenizer. Thread-safe."""

    def __init__(self, tokenizer: GGUFTokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary

    def check(self, schema: dict[str, Any]) -> str:
        """Return the schema in llguidance's format.

        Raises HQError if the schema is invalid, unsatisfiable, or has a keyword that cannot be
        enforced.
        """
        from llguidance import LLMatcher

        try:
            source: str = LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides=_JSON_FORMAT
            )
        except ValueError as error:
            raise HQError(f"The JSON schema cannot be used: {error}.") from error
        invalid, messages = LLMatcher.validate_grammar_with_warnings(source, self._llguidance)
        if invalid:
            raise HQError(f"The JSON schema cannot be used: {messages[0].splitlines()[0]}.")
        self.start(source, frozenset()).allowed()  # some schemas prove too complex only here
        return source

    def start(self, source: str, end_tokens: frozenset[int]) -> JSONGrammar:
        """Return the initial grammar state of one answer."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._llguidance, source, log_level=0)
        return JSONGrammar(matcher, end_tokens, self._vocabulary)

    @cached_property
    def _llguidance(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_TokenizerAdapter(self._tokenizer, self._vocabulary)))


class _TokenizerAdapter:
    """The attributes that llguidance reads from a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: GGUFTokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_token_id[0]
        self.tokens = [tokenizer.piece(token) for token in range(size)]
        self.special_token_ids = [token for token, text in enumerate(self.tokens) if not text]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.plain(text)
