"""Answers in JSON by a schema: which tokens may come next, by llguidance."""

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

# White space as Python's json.dumps writes it: a model could write it for ever where it is free.
_FORM: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,  # a keyword that is not enforced is an error
}


class Grammar:
    """One answer that follows a schema. `accept` every token, after asking what is `allowed`."""

    def __init__(self, matcher: "LLMatcher", ends: frozenset[int], vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._ends = sorted(ends)

    def allowed(self) -> Bool[np.ndarray, " vocab"]:
        """Which tokens may come next; those that end the answer once the JSON is whole.

        Raises HQError where the schema got too complex to be followed.
        """
        whole = self._matcher.is_accepting()
        if self._matcher.is_stopped():
            found = np.zeros(self._vocabulary, dtype=bool)
        else:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            found = np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(bool)
        if self._matcher.is_error():
            why = self._matcher.get_error().splitlines()[0]
            raise HQError(f"The JSON schema could not be followed: {why}.")
        found[self._ends] = whole
        return found

    def accept(self, token: int) -> None:
        """Goes on after a token. One that ends the answer is no part of the JSON."""
        if token not in self._ends:
            self._matcher.consume_token(token)


class Grammars:
    """Makes grammars of JSON schemas for one tokenizer. Any thread may use it."""

    def __init__(self, tokenizer: GGUFTokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary

    def check(self, schema: dict[str, Any]) -> str:
        """The schema in llguidance's form.

        Raises HQError for a schema that is invalid, that nothing satisfies, or that has keywords
        that cannot be enforced.
        """
        from llguidance import LLMatcher

        try:
            source: str = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_FORM)
        except ValueError as error:
            raise HQError(f"The JSON schema cannot be used: {error}.") from error
        invalid, messages = LLMatcher.validate_grammar_with_warnings(source, self._compiled)
        if invalid:
            raise HQError(f"The JSON schema cannot be used: {messages[0].splitlines()[0]}.")
        self.begin(source, frozenset()).allowed()  # some are found too complex here only
        return source

    def begin(self, source: str, ends: frozenset[int]) -> Grammar:
        """For one answer."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._compiled, source, log_level=0)
        return Grammar(matcher, ends, self._vocabulary)

    @cached_property
    def _compiled(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocabulary)))


class _Vocabulary:
    """What llguidance reads of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: GGUFTokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_token_id[0]
        self.tokens = [tokenizer.piece(token) for token in range(size)]
        self.special_token_ids = [token for token, text in enumerate(self.tokens) if not text]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.plain(text)
