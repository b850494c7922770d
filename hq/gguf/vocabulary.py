"""The vocabulary inside a GGUF file: its tokens, and whatever says something of each of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hq.errors import HQError
from hq.gguf.header import Value, damaged

_PREFIX = "tokenizer.ggml."


def tokens_of(path: Path, metadata: Mapping[str, Value]) -> tuple[str, ...]:
    """The tokens, in order of their ids.

    Raises HQError when they are missing, or when types, scores or special ids do not fit them.
    """
    tokens = metadata.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, tuple) or not tokens:
        raise HQError(f"{path} holds no vocabulary: convert the model together with its tokenizer.")
    if len(set(tokens)) < len(tokens):  # llama.cpp would end the process
        raise damaged(path, "a token occurs twice")
    if not isinstance(metadata.get(f"{_PREFIX}model"), str):
        raise damaged(path, f"{_PREFIX}model does not name a tokenizer")
    if not isinstance(metadata.get(f"{_PREFIX}merges", ()), tuple):
        raise damaged(path, f"{_PREFIX}merges are no strings")
    for key, kind in (("token_type", "i"), ("scores", "f")):
        if f"{_PREFIX}{key}" in metadata:
            _require_one_each(path, f"{_PREFIX}{key}", metadata, kind, len(tokens))
    for key, value in metadata.items():
        if key.startswith(_PREFIX) and key.endswith("_token_id"):
            _require_token(path, key, value, len(tokens))
    return tokens


def _require_one_each(
    path: Path, key: str, metadata: Mapping[str, Value], kind: str, count: int
) -> None:
    values = metadata[key]
    if not isinstance(values, np.ndarray) or values.dtype.kind != kind or len(values) != count:
        raise damaged(path, f"{key} is not one number for each of {count} tokens")
    if not np.isfinite(values).all():
        raise damaged(path, f"{key} is not finite")


def _require_token(path: Path, key: str, value: Value, count: int) -> None:
    if type(value) is not int or not 0 <= value < count:
        raise damaged(path, f"{key} is {value!r}, and there are {count} tokens")
