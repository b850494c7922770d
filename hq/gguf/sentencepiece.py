"""SentencePiece's BPE, as Llama 2, Mistral and Gemma have it: llama.cpp merges by scores.

transformers keeps such a tokenizer as merges. llama.cpp joins any two neighbours that make a token,
the best score first; scores from the merges' ranks give the same where the merges are what
SentencePiece's conversion makes of a vocabulary, and others are refused.
"""

from itertools import groupby
from pathlib import Path

from hq.gguf.tokens import Core, Tokens, TokenType, merges_of, refusal, tokens_by_id

_SPACE = "▁"


def sentencepiece(checkpoint: Path, core: Core) -> Tokens:
    """Raises HQError for a tokenizer whose merges, bytes or spaces llama.cpp treats otherwise."""
    model = core["model"]
    types = {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
    missing = [token for token in types if token not in model["vocab"]]
    if missing:
        raise refusal(checkpoint, f"has no token {missing[0]}", "has one for every byte")
    if model["unk_token"] is not None:
        types[model["unk_token"]] = TokenType.UNKNOWN
    merges = merges_of(core)
    added = {token["content"] for token in core["added_tokens"]}
    _require_closed(checkpoint, merges, set(model["vocab"]) - set(types) - added)
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    return Tokens(
        "llama", "default", tokens_by_id(core), types, scores, _space_prefix(checkpoint, core)
    )


def _space_prefix(checkpoint: Path, core: Core) -> bool:
    """Whether a space is put before a text; spaces become ▁ in one of four known ways."""
    normalizer, pre_tokenizer = core["normalizer"], core["pre_tokenizer"] or {"type": None}
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    match pre_tokenizer:
        # Gemma splits at spaces, of which its normalizer has left none.
        case {"type": None} | {"type": "Split", "pattern": {"String": " "}}:
            if normalizer == escape:
                return False
            if normalizer == {"type": "Sequence", "normalizers": [prepend, escape]}:
                return True
        case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme}:
            if normalizer is None:
                return bool(scheme != "never")
    raise refusal(
        checkpoint,
        f"prepares a text by {normalizer}, then {core['pre_tokenizer']}",
        "turns spaces into ▁ as SentencePiece does",
    )


def _require_closed(checkpoint: Path, merges: list[tuple[str, str]], tokens: set[str]) -> None:
    """Every pair that makes a token is a merge, and the merges that make a token stand together.

    Runs of one character, such as Gemma's spaces, may be interleaved: any order makes the same.
    """
    known = set(merges)
    for token in tokens:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in tokens and right in tokens and (left, right) not in known:
                raise refusal(
                    checkpoint, f"does not merge {left!r} and {right!r}", "merges all it can"
                )
    seen: set[str] = set()
    for token, _ in groupby(left + right for left, right in merges):
        if token in seen and len(set(token)) > 1:
            raise refusal(checkpoint, f"merges into {token!r} at two ranks", "does at one")
        seen.add(token)
