"""A transformers tokenizer of what a GGUF file says: the way back of writing one.

Transformers' own reading loses steps of a pre-tokenizer, may add a token, and puts no space after a
special token where SentencePiece does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hq.errors import HQError
from hq.gguf.bytelevel import steps_of
from hq.gguf.file import GGUFFile
from hq.gguf.tokens import TokenType

_PREFIX = "tokenizer.ggml."
_SPACE = "▁"
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_STEPS: dict[str, Callable[[], Any]] = {
    "words": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "digits": lambda: pre_tokenizers.Digits(individual_digits=True),
}


def tokenizer_of(file: GGUFFile) -> PreTrainedTokenizerFast:
    """The tokenizer in the file: byte-level BPE, or SentencePiece's.

    Raises HQError for another kind, a pre-tokenizer that hq does not know, or a missing part.
    """
    said = file.metadata
    kind = str(said[f"{_PREFIX}model"])
    if kind not in _CORES:
        raise HQError(
            f"{file.path} has a tokenizer of kind {kind!r}, and hq reads {' and '.join(_CORES)}: "
            "name the model's checkpoint instead."
        )
    core = _CORES[kind](file)
    _add(core, file)
    if said.get(f"{_PREFIX}add_bos_token", kind == "llama"):
        first = said.get(f"{_PREFIX}bos_token_id")
        if not isinstance(first, int):
            raise HQError(f"{file.path} names no first token: name the model's checkpoint instead.")
        token = file.tokens[first]
        core.post_processor = TemplateProcessing(f"{token} $A", special_tokens=[(token, first)])
    roles = {
        f"{ours}_token": file.tokens[index]
        for ours, theirs in _ROLES.items()
        if isinstance(index := said.get(f"{_PREFIX}{theirs}_token_id"), int)
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **roles
    )
    made.chat_template = said.get("tokenizer.chat_template")
    return made


def _byte_level(file: GGUFFile) -> Tokenizer:
    said = file.metadata
    merges = said.get(f"{_PREFIX}merges")
    if not isinstance(merges, tuple):
        raise HQError(f"{file.path} has no merges: name the model's checkpoint instead.")
    steps, ignore_merges = steps_of(str(said.get(f"{_PREFIX}pre")), str(file.path))
    core = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(file.tokens)},
            [(left, right) for left, right in (str(m).split(" ", 1) for m in merges)],
            ignore_merges=ignore_merges,
        )
    )
    core.pre_tokenizer = pre_tokenizers.Sequence([_step(step) for step in steps])
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(file: GGUFFile) -> Tokenizer:
    said = file.metadata
    unknown = said.get(f"{_PREFIX}unknown_token_id")
    core = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(file.tokens)},
            _merges(file),
            unk_token=file.tokens[unknown] if isinstance(unknown, int) else None,
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    escape = normalizers.Replace(" ", _SPACE)
    spelled = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if said.get(f"{_PREFIX}add_space_prefix", True):
        core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), escape])
        spelled.append(decoders.Strip(" ", 1, 0))
    else:
        core.normalizer = escape
    core.decoder = decoders.Sequence(spelled)
    return core


def _merges(file: GGUFFile) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the best score first: what llama.cpp joins."""
    scores, types = (file.metadata.get(f"{_PREFIX}{key}") for key in ("scores", "token_type"))
    if not isinstance(scores, np.ndarray) or not isinstance(types, np.ndarray):
        raise HQError(f"{file.path} has no scores: name the model's checkpoint instead.")
    normal = np.flatnonzero(types == TokenType.NORMAL)
    ranked = [file.tokens[i] for i in normal[np.argsort(-scores[normal], kind="stable")]]
    known = set(ranked)
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


_CORES: dict[str, Callable[[GGUFFile], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}
"""The kinds of tokenizer that hq reads, by llama.cpp's names."""


def _step(step: str) -> Any:
    return _STEPS[step]() if step in _STEPS else pre_tokenizers.Split(Regex(step), "isolated")


def _add(core: Tokenizer, file: GGUFFile) -> None:
    """Control tokens are special; those that a user defined are whole wherever they stand."""
    types = file.metadata.get(f"{_PREFIX}token_type", ())
    for token, kind in zip(file.tokens, types, strict=False):  # type: ignore[arg-type]
        if kind == TokenType.CONTROL:
            core.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == TokenType.USER_DEFINED:
            core.add_tokens([AddedToken(token, normalized=False)])
