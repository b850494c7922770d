"""A transformers tokenizer of what a GGUF file says: the way back of writing one.

A file that hq wrote carries the checkpoint's own tokenizer (`tokenizer.huggingface.json`, as GGUF's
specification has it). Of any other, llama.cpp's name of the pre-tokenizer says how it splits.
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
from hq.gguf.file import GGUFFile
from hq.gguf.header import damaged
from hq.gguf.tokens import JSON, TokenType
from hq.models.architectures.pre_tokenizers import PRE_TOKENIZERS

_PREFIX = "tokenizer.ggml."
_SPACE = "▁"
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONTROL = ("bos", "eos", "eot", "eom")  # control tokens, whatever their type says
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
    core = _whole(file) or _rebuilt(file)
    roles = {
        f"{ours}_token": file.tokens[index]
        for ours, theirs in _ROLES.items()
        if isinstance(index := said.get(f"{_PREFIX}{theirs}_token_id"), int)
        # transformers makes a special token of it: a word that pads must stay a word.
        and not (ours == "pad" and _types(file)[index : index + 1] == [TokenType.NORMAL])
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **roles
    )
    made.chat_template = said.get("tokenizer.chat_template")
    return made


def _whole(file: GGUFFile) -> Tokenizer | None:
    """The checkpoint's tokenizer, where the file carries it.

    Raises HQError for one that cannot be read, or whose tokens are not the file's.
    """
    text = file.metadata.get(JSON)
    if text is None:
        return None
    try:
        core = Tokenizer.from_str(str(text))
    except Exception as error:  # the library raises nothing narrower
        raise damaged(file.path, f"{JSON} cannot be read") from error
    for token, index in core.get_vocab(with_added_tokens=True).items():
        if index >= len(file.tokens) or file.tokens[index] != token:
            raise damaged(file.path, f"{JSON} has {token!r} as token {index}, and the file not")
    return core


def _rebuilt(file: GGUFFile) -> Tokenizer:
    said = file.metadata
    kind = str(said[f"{_PREFIX}model"])
    if kind not in _CORES:
        raise HQError(
            f"{file.path} has a tokenizer of kind {kind!r}, and hq reads {' and '.join(_CORES)}: "
            "name the model's checkpoint instead."
        )
    core = _CORES[kind](file)
    _add(core, file)
    # `add_eos_token` is left out: in front of an answer, a text has no end.
    pre = str(said.get(f"{_PREFIX}pre"))
    begins = kind == "llama" or (pre in PRE_TOKENIZERS and PRE_TOKENIZERS[pre].adds_bos)
    if said.get(f"{_PREFIX}add_bos_token", begins):
        first = said.get(f"{_PREFIX}bos_token_id")
        if not isinstance(first, int):
            raise HQError(f"{file.path} names no first token: name the model's checkpoint instead.")
        token = file.tokens[first]
        core.post_processor = TemplateProcessing([token, "$A"], special_tokens=[(token, first)])
    return core


def _byte_level(file: GGUFFile) -> Tokenizer:
    said = file.metadata
    merges = said.get(f"{_PREFIX}merges")
    if not isinstance(merges, tuple):
        raise HQError(f"{file.path} has no merges: name the model's checkpoint instead.")
    pre = str(said.get(f"{_PREFIX}pre"))
    if pre not in PRE_TOKENIZERS:
        raise HQError(
            f"The tokenizer of {file.path} splits as {pre}, and hq knows "
            f"{', '.join(PRE_TOKENIZERS)}: name the model's checkpoint instead."
        )
    known = PRE_TOKENIZERS[pre]
    core = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(file.tokens)},
            [(left, right) for left, right in (str(m).split(" ", 1) for m in merges)],
            ignore_merges=known.ignore_merges,
        )
    )
    core.normalizer = normalizers.NFC() if known.nfc else None
    core.pre_tokenizer = pre_tokenizers.Sequence([_step(step) for step in known.steps])
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


def _types(file: GGUFFile) -> list[int]:
    """llama.cpp's types of the tokens; nothing where the file has none."""
    types = file.metadata.get(f"{_PREFIX}token_type")
    return types.tolist() if isinstance(types, np.ndarray) else []


def _add(core: Tokenizer, file: GGUFFile) -> None:
    """Control tokens are special; those that a user defined are whole wherever they stand."""
    named = {file.metadata.get(f"{_PREFIX}{role}_token_id") for role in _CONTROL}
    special, whole = [], []
    for index, (token, kind) in enumerate(zip(file.tokens, _types(file), strict=False)):
        if kind == TokenType.CONTROL or index in named:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == TokenType.USER_DEFINED:
            whole.append(AddedToken(token, normalized=False))
    core.add_special_tokens(special)
    core.add_tokens(whole)
