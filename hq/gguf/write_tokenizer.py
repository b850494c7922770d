"""Write a tokenizer as GGUF keys, so that llama.cpp splits a text into the ids of transformers.

What is written is the tokenizer that transformers builds from the checkpoint. It is also written in
full, for hq's own monitor and server. A tokenizer that llama.cpp cannot reproduce is rejected.
llama.cpp still splits some texts differently:

- texts that are not in NFC, if the tokenizer normalizes (Qwen), as llama.cpp does not;
- texts with bytes that a byte-level vocabulary lacks (SmolLM2: some control characters): both drop
  them, but transformers then merges across the gap;
- texts that begin with a space, if the tokenizer is a `Metaspace` (Llama 2 and Mistral in
  transformers 5): llama.cpp puts another space before them, and, with the scheme "first", a space
  after every special token inside the text;
- texts with overlapping added tokens: transformers takes the first, llama.cpp the longest.
"""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hq.errors import HQError
from hq.gguf.vocabulary import HUGGINGFACE_KEY, KEY_PREFIX, SPACE, TokenType
from hq.models.architectures.pre_tokenizers import PRE_TOKENIZERS
from hq.models.architectures.record import Metadata
from hq.models.tokenizer import load_tokenizer

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

TokenizerJSON = dict[str, Any]
"""A tokenizer in the JSON format of the library tokenizers."""

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_UNMERGED = -1e6  # the score of a token that no merge produces


@dataclass(frozen=True, slots=True)
class _Model:
    """What one kind of tokenizer contributes to the keys."""

    model: str  # llama.cpp's name of the kind
    pre: str  # llama.cpp's name of the pre-tokenizer
    types: dict[str, TokenType]  # of tokens that are not normal ones
    scores: dict[str, float] | None = None  # of merged tokens; None where merges are written
    space_prefix: bool = False  # whether a space is put before a text


def tokenizer_metadata(checkpoint: Path, config: "PretrainedConfig", rows: int) -> Metadata:
    """The `tokenizer.*` keys for an embedding of `rows` rows; rows without a token are unused.

    Raises HQError if the checkpoint has no tokenizer, or one that llama.cpp cannot reproduce.
    """
    tokenizer = _load(checkpoint)
    core: TokenizerJSON = json.loads(tokenizer.backend_tokenizer.to_str())
    if core["model"]["type"] != "BPE":
        raise unsupported_tokenizer(checkpoint, f"is of type {core['model']['type']}", "is a BPE")
    describe = _sentencepiece if core["model"]["byte_fallback"] else _byte_level
    model = describe(checkpoint, core)
    added = _added_tokens(checkpoint, tokenizer, core)
    texts, types = _rows(checkpoint, core, model, added, rows)
    keys: Metadata = {
        "model": model.model,
        "pre": model.pre,
        "tokens": texts,
        "token_type": types,
        "add_space_prefix": model.space_prefix,
    }
    if model.scores is None:
        keys["merges"] = [" ".join(pair) for pair in _merges(core)]
        if not keys["merges"]:
            raise unsupported_tokenizer(checkpoint, "has no merges", "has some")
    else:
        keys["scores"] = [model.scores.get(text, _UNMERGED) for text in texts]
    keys |= _special_ids(checkpoint, tokenizer, config, rows)
    keys |= _added_at_ends(checkpoint, tokenizer)
    metadata = {f"{KEY_PREFIX}{key}": value for key, value in keys.items()}
    metadata[HUGGINGFACE_KEY] = json.dumps(core, ensure_ascii=False, separators=(",", ":"))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return metadata | ({"tokenizer.chat_template": template} if template else {})


def unsupported_tokenizer(checkpoint: Path, actual: str, required: str) -> HQError:
    """Return the error for a tokenizer that llama.cpp cannot reproduce."""
    return HQError(
        f"The tokenizer of {checkpoint} {actual}: llama.cpp can only reproduce one that "
        f"{required}, so the model cannot be written as GGUF."
    )


def _load(checkpoint: Path) -> Any:
    # Without a file transformers silently creates an empty tokenizer.
    if not any((checkpoint / name).is_file() for name in _FILES):
        raise HQError(
            f"{checkpoint} has no tokenizer, which a GGUF file must have: copy the model's "
            f"{_FILES[0]} and tokenizer_config.json there."
        )
    tokenizer = load_tokenizer(checkpoint)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise unsupported_tokenizer(checkpoint, "is written in Python", "has a tokenizer.json")
    return tokenizer


# Byte-level BPE, as in GPT-2: llama.cpp gets the merges and its name of the pre-tokenizer.


def _byte_level(checkpoint: Path, core: TokenizerJSON) -> _Model:
    """Raises HQError, with the steps, if no pre-tokenizer of llama.cpp has them."""
    normalizer = core["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise unsupported_tokenizer(checkpoint, f"normalizes by {normalizer['type']}", "does not")
    steps = tuple(_step(checkpoint, step) for step in _steps(core["pre_tokenizer"]))
    ignore_merges = bool(core["model"]["ignore_merges"])
    writable = {n: PRE_TOKENIZERS[n] for n in PRE_TOKENIZERS if PRE_TOKENIZERS[n].written}
    for name, pre_tokenizer in writable.items():
        if (pre_tokenizer.steps, pre_tokenizer.ignore_merges) == (steps, ignore_merges):
            return _Model("gpt2", name, {})
    raise unsupported_tokenizer(
        checkpoint,
        f"splits by {steps} with ignore_merges {ignore_merges}",
        f"splits as {', '.join(writable)} do (if it knows this one, register its name as in "
        "hq/models/architectures/pre_tokenizers.py)",
    )


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    steps: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return steps


def _step(checkpoint: Path, step: dict[str, Any]) -> str:
    """A step as `hq.models.architectures.pre_tokenizers` names it."""
    if step.get("add_prefix_space"):
        raise unsupported_tokenizer(checkpoint, "puts a space before every text", "does not")
    match step:
        case {"type": "ByteLevel", "use_regex": True}:
            return "words"
        case {"type": "ByteLevel"}:
            return "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {
            "type": "Split",
            "pattern": {"Regex": str(regex)},
            "behavior": "Isolated",
            "invert": False,
        }:
            return regex
    return str(step)


# SentencePiece's BPE, as in Llama 2, Mistral and Gemma. transformers stores merges. llama.cpp joins
# any two neighbours that form a token, the one with the highest score first. Scores from the ranks
# of merges give the same result if the merges are all those that the vocabulary allows; other
# merges are rejected.


def _sentencepiece(checkpoint: Path, core: TokenizerJSON) -> _Model:
    """Raises HQError if llama.cpp would treat merges, bytes or spaces differently."""
    model = core["model"]
    types = {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
    missing = [token for token in types if token not in model["vocab"]]
    if missing:
        raise unsupported_tokenizer(
            checkpoint, f"has no token {missing[0]}", "has one for every byte"
        )
    if model["unk_token"] is not None:
        types[model["unk_token"]] = TokenType.UNKNOWN
    merges = _merges(core)
    added = {token["content"] for token in core["added_tokens"]}
    _require_all_merges(checkpoint, merges, set(model["vocab"]) - set(types) - added)
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    return _Model("llama", "default", types, scores, _has_space_prefix(checkpoint, core))


def _has_space_prefix(checkpoint: Path, core: TokenizerJSON) -> bool:
    """Whether a space is put before a text.

    Raises HQError unless spaces become ▁ in one of four known ways.
    """
    normalizer, pre_tokenizer = core["normalizer"], core["pre_tokenizer"] or {"type": None}
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    match pre_tokenizer:
        # Gemma splits at spaces, but its normalizer has replaced them all.
        case {"type": None} | {"type": "Split", "pattern": {"String": " "}}:
            if normalizer == escape:
                return False
            if normalizer == {"type": "Sequence", "normalizers": [prepend, escape]}:
                return True
        case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme}:
            if normalizer is None:
                return bool(scheme != "never")
    raise unsupported_tokenizer(
        checkpoint,
        f"prepares a text by {normalizer}, then {core['pre_tokenizer']}",
        "turns spaces into ▁ as SentencePiece does",
    )


def _require_all_merges(checkpoint: Path, merges: list[tuple[str, str]], tokens: set[str]) -> None:
    """Raises HQError unless every pair that forms a token is a merge, at one rank per token.

    Merges into a run of one character, such as Gemma's spaces, may have several ranks, as any order
    gives the same result.
    """
    known = set(merges)
    for token in tokens:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in tokens and right in tokens and (left, right) not in known:
                raise unsupported_tokenizer(
                    checkpoint, f"does not merge {left!r} and {right!r}", "merges all it can"
                )
    seen: set[str] = set()
    for token, _ in groupby(left + right for left, right in merges):
        if token in seen and len(set(token)) > 1:
            raise unsupported_tokenizer(
                checkpoint, f"merges into {token!r} at two ranks", "does at one"
            )
        seen.add(token)


# What both kinds share.


def _merges(core: TokenizerJSON) -> list[tuple[str, str]]:
    """Pairs of tokens, in the order in which they are merged."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in core["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _added_tokens(checkpoint: Path, tokenizer: Any, core: TokenizerJSON) -> list[dict[str, Any]]:
    """The added tokens, which are found in a text before it is split."""
    added: list[dict[str, Any]] = core["added_tokens"]
    normalizer = tokenizer.backend_tokenizer.normalizer
    for token in added:
        text = token["content"]
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise unsupported_tokenizer(
                checkpoint, f"depends on the text around {text!r}", "does not"
            )
        unchanged = {text, text.replace(" ", SPACE)}
        if token["normalized"] and normalizer and normalizer.normalize_str(text) not in unchanged:
            raise unsupported_tokenizer(checkpoint, f"normalizes its token {text!r}", "does not")
    return added


def _rows(
    checkpoint: Path, core: TokenizerJSON, model: _Model, added: list[dict[str, Any]], rows: int
) -> tuple[list[str], list[int]]:
    """Text and type of the token of each row of the embedding."""
    by_id = {index: token for token, index in core["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in added}
    if max(by_id) >= rows:
        raise HQError(
            f"The tokenizer of {checkpoint} has a token {max(by_id)} ({by_id[max(by_id)]!r}), but "
            f"the embedding ends at row {rows - 1}: use the tokenizer that belongs to the model."
        )
    types = {token["content"]: _added_type(model, token) for token in added} | model.types
    texts = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
    text, count = Counter(texts).most_common(1)[0]
    if count > 1:
        raise unsupported_tokenizer(checkpoint, f"has {count} tokens {text!r}", "has each once")
    defaults = (TokenType.NORMAL if i in by_id else TokenType.UNUSED for i in range(rows))
    return texts, [int(types.get(text, type)) for text, type in zip(texts, defaults, strict=True)]


def _added_type(model: _Model, token: dict[str, Any]) -> TokenType:
    """The type of an added token. Gemma adds its runs of ▁, but produces them by merging."""
    if token["special"]:
        return TokenType.CONTROL
    merged = model.scores is not None and token["content"] in model.scores
    return TokenType.NORMAL if merged and SPACE in token["content"] else TokenType.USER_DEFINED


def _special_ids(
    checkpoint: Path, tokenizer: Any, config: "PretrainedConfig", rows: int
) -> Metadata:
    """Ids by llama.cpp's keys. It has three keys for tokens that end an answer."""
    end_keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = dict(zip(end_keys, _end_ids(checkpoint, tokenizer, config), strict=False)) | {
        "bos_token_id": _first(tokenizer.bos_token_id, config.bos_token_id),
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": _first(tokenizer.pad_token_id, config.pad_token_id),
    }
    return {key: id for key, id in ids.items() if id is not None and 0 <= id < rows}


def _end_ids(checkpoint: Path, tokenizer: Any, config: "PretrainedConfig") -> list[int]:
    """The tokenizer's EOS token, then the other tokens that end a generation."""
    file = checkpoint / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    others = _first(generation.get("eos_token_id"), config.eos_token_id)
    ends = [tokenizer.eos_token_id, *(others if isinstance(others, list) else [others])]
    return list(dict.fromkeys(end for end in ends if end is not None))


def _first(*ids: Any) -> Any:
    """The first id that is not None."""
    return next((id for id in ids if id is not None), None)


def _added_at_ends(checkpoint: Path, tokenizer: Any) -> Metadata:
    """Whether the tokenizer adds BOS before a text and EOS after it."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    encoded = tokenizer("a").input_ids
    before = next(
        (k for k in range(len(encoded), -1, -1) if encoded[k : k + len(plain)] == plain), None
    )
    if before is not None:
        bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
        head, tail = encoded[:before], encoded[before + len(plain) :]
        if head in ([], bos) and tail in ([], eos):
            return {"add_bos_token": head == bos, "add_eos_token": tail == eos}
    raise unsupported_tokenizer(
        checkpoint, f"makes {encoded} of {plain}", "adds at most its first and last token"
    )
