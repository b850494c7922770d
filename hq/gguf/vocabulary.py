"""The vocabulary in a GGUF file: its keys, the types of its tokens, and checks of what it has."""

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

import numpy as np

from hq.errors import HQError
from hq.gguf.header import MetadataValue, damaged

KEY_PREFIX = "tokenizer.ggml."
HUGGINGFACE_KEY = "tokenizer.huggingface.json"
"""GGUF's key of the checkpoint's own tokenizer, in the JSON format of the library tokenizers."""
SPACE = "▁"  # stands for a space in SentencePiece vocabularies


class TokenType(IntEnum):
    """llama.cpp's types of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokens_of(path: Path, metadata: Mapping[str, MetadataValue]) -> tuple[str, ...]:
    """The tokens, in the order of their ids.

    Raises HQError if they are missing, or if types, scores or special ids do not match them.
    """
    tokens = metadata.get(f"{KEY_PREFIX}tokens")
    if not isinstance(tokens, tuple) or not tokens:
        raise HQError(f"{path} has no vocabulary: convert the model together with its tokenizer.")
    if len(set(tokens)) < len(tokens):  # llama.cpp would end the process
        raise damaged(path, "a token of its vocabulary is duplicated")
    if not isinstance(metadata.get(f"{KEY_PREFIX}model"), str):
        raise damaged(path, f"{KEY_PREFIX}model does not name a tokenizer")
    if not isinstance(metadata.get(f"{KEY_PREFIX}merges", ()), tuple):
        raise damaged(path, f"{KEY_PREFIX}merges is not an array of strings")
    for key, kind in (("token_type", "i"), ("scores", "f")):
        if f"{KEY_PREFIX}{key}" in metadata:
            _require_one_each(path, f"{KEY_PREFIX}{key}", metadata, kind, len(tokens))
    for key, value in metadata.items():
        if key.startswith(KEY_PREFIX) and key.endswith("_token_id"):
            _require_token(path, key, value, len(tokens))
    return tokens


def _require_one_each(
    path: Path, key: str, metadata: Mapping[str, MetadataValue], kind: str, count: int
) -> None:
    """Raises HQError unless a key has one finite number of NumPy's `kind` for each token."""
    values = metadata[key]
    if not isinstance(values, np.ndarray) or values.dtype.kind != kind or len(values) != count:
        raise damaged(path, f"{key} does not have one number for each of {count} tokens")
    if not np.isfinite(values).all():
        raise damaged(path, f"{key} is not finite")


def _require_token(path: Path, key: str, value: MetadataValue, count: int) -> None:
    if type(value) is not int or not 0 <= value < count:
        raise damaged(path, f"{key} is {value!r}, but there are {count} tokens")
