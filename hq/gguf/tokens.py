"""What one kind of tokenizer gives a GGUF file: its tokens, and how llama.cpp is to merge them."""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from hq.errors import HQError

JSON = "tokenizer.huggingface.json"  # GGUF's key of the checkpoint's own tokenizer, all of it
Core = dict[str, Any]  # a tokenizer as the `tokenizers` library spells it in JSON


class TokenType(IntEnum):
    """llama.cpp's types of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Tokens:
    """`model` and `pre` are llama.cpp's names of the kind and of its pre-tokenizer.

    `types` has the tokens that are not normal ones, `scores` the tokens that merges make, the best
    first merged; without scores llama.cpp is given the merges themselves.
    """

    model: str
    pre: str
    by_id: dict[int, str]
    types: dict[str, TokenType]
    scores: dict[str, float] | None = None
    space_prefix: bool = False


def tokens_by_id(core: Core) -> dict[int, str]:
    """The tokens of the model itself, without the added ones."""
    return {index: token for token, index in core["model"]["vocab"].items()}


def merges_of(core: Core) -> list[tuple[str, str]]:
    """Pairs of tokens, those merged first in front."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in core["model"]["merges"])
    return [(left, right) for left, right in pairs]


def refusal(checkpoint: Path, found: str, wanted: str) -> HQError:
    """The sentence for a tokenizer that llama.cpp would not follow."""
    return HQError(
        f"The tokenizer of {checkpoint} {found}: llama.cpp can only follow one that {wanted}, so "
        "the model cannot be written as GGUF."
    )
