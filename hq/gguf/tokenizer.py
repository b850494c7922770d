"""A tokenizer as GGUF keys, so that llama.cpp splits a text into the ids that transformers gives.

What is written is the tokenizer that transformers makes of the checkpoint, not the file beside it.
It is also written whole, for hq's own monitor and server to read. One that llama.cpp cannot follow
is refused. What llama.cpp does not do, and so splits otherwise:

- Unicode normalisation (Qwen's NFC): texts that are not in NFC already;
- characters of bytes that a byte-level vocabulary lacks (SmolLM2's: some control characters): both
  drop them, and transformers then merges what stood around them;
- the prefix space of `Metaspace` tokenizers (Llama 2 and Mistral in transformers 5): llama.cpp puts
  one before a text that begins with a space too, and, where the scheme is "first", after every
  special token inside the text;
- added tokens that overlap in a text: transformers takes the first, llama.cpp the longest.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hq.errors import HQError
from hq.gguf.bytelevel import byte_level
from hq.gguf.conversion import Metadata
from hq.gguf.sentencepiece import sentencepiece
from hq.gguf.tokens import JSON, Core, Tokens, TokenType, merges_of, refusal
from hq.models.tokenizer import load_tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_LEAST = -1e6  # the score of a token that no merge makes


def tokenizer_metadata(checkpoint: Path, config: PretrainedConfig, rows: int) -> Metadata:
    """The `tokenizer.*` keys for an embedding of `rows` rows; rows without a token are unused.

    Raises HQError when the checkpoint has no tokenizer, or one that llama.cpp cannot follow.
    """
    tokenizer = _load(checkpoint)
    core: Core = json.loads(tokenizer.backend_tokenizer.to_str())
    if core["model"]["type"] != "BPE":
        raise refusal(checkpoint, f"is of type {core['model']['type']}", "is a BPE")
    kind = sentencepiece if core["model"]["byte_fallback"] else byte_level
    tokens = kind(checkpoint, core)
    texts, types = _rows(checkpoint, tokens, _added(checkpoint, tokenizer, core), rows)
    keys: Metadata = {
        "model": tokens.model,
        "pre": tokens.pre,
        "tokens": texts,
        "token_type": types,
        "add_space_prefix": tokens.space_prefix,
    }
    if tokens.scores is None:
        keys["merges"] = [" ".join(pair) for pair in merges_of(core)]
        if not keys["merges"]:
            raise refusal(checkpoint, "has no merges", "has some")
    else:
        keys["scores"] = [tokens.scores.get(text, _LEAST) for text in texts]
    keys |= _special_ids(checkpoint, tokenizer, config, rows) | _ends(checkpoint, tokenizer)
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    named[JSON] = json.dumps(core, ensure_ascii=False, separators=(",", ":"))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return named | ({"tokenizer.chat_template": template} if template else {})


def _load(checkpoint: Path) -> Any:
    # Without a file transformers makes an empty tokenizer and says nothing.
    if not any((checkpoint / name).is_file() for name in _FILES):
        raise HQError(
            f"{checkpoint} has no tokenizer, and a GGUF file carries one: copy the model's "
            f"{_FILES[0]} and tokenizer_config.json there."
        )
    tokenizer = load_tokenizer(checkpoint)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise refusal(checkpoint, "is written in Python", "has a tokenizer.json")
    return tokenizer


def _added(checkpoint: Path, tokenizer: Any, core: Core) -> list[dict[str, Any]]:
    """The added tokens, which are found in a text before it is split."""
    added: list[dict[str, Any]] = core["added_tokens"]
    normalizer = tokenizer.backend_tokenizer.normalizer
    for token in added:
        text = token["content"]
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise refusal(checkpoint, f"looks at what stands around {text!r}", "does not")
        as_found = {text, text.replace(" ", "▁")}
        if token["normalized"] and normalizer and normalizer.normalize_str(text) not in as_found:
            raise refusal(checkpoint, f"normalizes its token {text!r}", "does not")
    return added


def _rows(
    checkpoint: Path, tokens: Tokens, added: list[dict[str, Any]], rows: int
) -> tuple[list[str], list[int]]:
    """Text and type of each row of the embedding."""
    by_id = tokens.by_id | {token["id"]: token["content"] for token in added}
    if max(by_id) >= rows:
        raise HQError(
            f"The tokenizer of {checkpoint} has a token {max(by_id)} ({by_id[max(by_id)]!r}), but "
            f"the embedding ends at row {rows - 1}: use the tokenizer that belongs to the model."
        )
    types = {token["content"]: _added_type(tokens, token) for token in added} | tokens.types
    texts = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
    text, count = Counter(texts).most_common(1)[0]
    if count > 1:
        raise refusal(checkpoint, f"has {count} tokens {text!r}", "has each once")
    unused = (TokenType.NORMAL if i in by_id else TokenType.UNUSED for i in range(rows))
    return texts, [int(types.get(text, type)) for text, type in zip(texts, unused, strict=True)]


def _added_type(tokens: Tokens, token: dict[str, Any]) -> TokenType:
    """Gemma adds its runs of ▁, but makes them of spaces by merging, which is what counts."""
    if token["special"]:
        return TokenType.CONTROL
    merged = tokens.scores is not None and token["content"] in tokens.scores
    return TokenType.NORMAL if merged and "▁" in token["content"] else TokenType.USER_DEFINED


def _special_ids(checkpoint: Path, tokenizer: Any, config: PretrainedConfig, rows: int) -> Metadata:
    """Ids by llama.cpp's names. It has three places for what ends an answer."""
    places = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = dict(zip(places, _end_ids(checkpoint, tokenizer, config), strict=False)) | {
        "bos_token_id": _first(tokenizer.bos_token_id, config.bos_token_id),
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": _first(tokenizer.pad_token_id, config.pad_token_id),
    }
    return {key: id for key, id in ids.items() if id is not None and 0 <= id < rows}


def _end_ids(checkpoint: Path, tokenizer: Any, config: PretrainedConfig) -> list[int]:
    """The tokenizer's end, then the others that generation ends at."""
    file = checkpoint / "generation_config.json"
    found = (
        json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    )
    others = _first(found, config.eos_token_id)
    listed = others if isinstance(others, list) else [others]
    ends = [tokenizer.eos_token_id, *listed]
    return list(dict.fromkeys(end for end in ends if end is not None))


def _first(*ids: Any) -> Any:
    return next((id for id in ids if id is not None), None)


def _ends(checkpoint: Path, tokenizer: Any) -> Metadata:
    """Whether a text gets the first and the last special token: what the tokenizer itself does."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    before = next(
        (k for k in range(len(whole), -1, -1) if whole[k : k + len(plain)] == plain), None
    )
    if before is not None:
        bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
        head, tail = whole[:before], whole[before + len(plain) :]
        if head in ([], bos) and tail in ([], eos):
            return {"add_bos_token": head == bos, "add_eos_token": tail == eos}
    raise refusal(checkpoint, f"makes {whole} of {plain}", "adds its first and last token at most")
