"""Build a transformers tokenizer from the metadata of a GGUF file.

A file that hq wrote contains the checkpoint's own tokenizer (`tokenizer.huggingface.json` of GGUF's
specification). For other files, llama.cpp's name of the pre-tokenizer determines how it splits.
transformers' own GGUF reader drops steps of pre-tokenizers, may add a token, and puts no space
after a special token where SentencePiece does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.header import damaged
from hq.gguf.vocabulary import HUGGINGFACE_KEY, KEY_PREFIX, SPACE, TokenType
from hq.models.architectures.pre_tokenizers import PRE_TOKENIZERS

if TYPE_CHECKING:  # the import takes a second
    from transformers import PreTrainedTokenizerFast

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONTROL = ("bos", "eos", "eot", "eom")  # are control tokens, whatever their declared type
_STEPS: dict[str, Callable[[], Any]] = {
    "words": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "digits": lambda: pre_tokenizers.Digits(individual_digits=True),
}


def tokenizer_of(file: GGUFFile) -> "PreTrainedTokenizerFast":
    """The tokenizer of the file: byte-level BPE or SentencePiece.

    Raises HQError if it is of another kind, has an unknown pre-tokenizer, or lacks a part.
    """
    core = _embedded(file) or _rebuilt(file)
    roles = {
        f"{role}_token": file.tokens[index]
        for role, key in _ROLES.items()
        if isinstance(index := _get(file, f"{key}_token_id"), int)
        # transformers makes it a special token, so a word that is used for padding is left out.
        and not (role == "pad" and _types(file)[index : index + 1] == [TokenType.NORMAL])
    }
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **roles
    )
    tokenizer.chat_template = file.metadata.get("tokenizer.chat_template")
    return tokenizer


def _get(file: GGUFFile, key: str, default: Any = None) -> Any:
    """A value of the file's vocabulary."""
    return file.metadata.get(KEY_PREFIX + key, default)


def _embedded(file: GGUFFile) -> Tokenizer | None:
    """The checkpoint's tokenizer, if the file contains it.

    Raises HQError if it cannot be read, or if its tokens are not the file's.
    """
    text = file.metadata.get(HUGGINGFACE_KEY)
    if text is None:
        return None
    try:
        core = Tokenizer.from_str(str(text))
    except Exception as error:  # the library raises nothing narrower
        raise damaged(file.path, f"{HUGGINGFACE_KEY} cannot be read") from error
    for token, index in core.get_vocab(with_added_tokens=True).items():
        if index >= len(file.tokens) or file.tokens[index] != token:
            raise damaged(
                file.path,
                f"{HUGGINGFACE_KEY} has {token!r} as token {index}, which differs from "
                f"{KEY_PREFIX}tokens",
            )
    return core


def _rebuilt(file: GGUFFile) -> Tokenizer:
    """A tokenizer built from the vocabulary and llama.cpp's names."""
    kind = str(_get(file, "model"))
    if kind not in _KINDS:
        raise HQError(
            f"{file.path} has a tokenizer of kind {kind!r}, but hq reads {' and '.join(_KINDS)}: "
            "name the model's checkpoint instead."
        )
    core = _KINDS[kind](file)
    _add_special_tokens(core, file)
    # `add_eos_token` is ignored: a prompt is followed by an answer, so it has no end token.
    name = str(_get(file, "pre"))
    adds_bos = name in PRE_TOKENIZERS and PRE_TOKENIZERS[name].adds_bos
    bos_by_default = kind == "llama" or adds_bos
    if _get(file, "add_bos_token", bos_by_default):
        bos = _get(file, "bos_token_id")
        if not isinstance(bos, int):
            raise HQError(f"{file.path} names no BOS token: name the model's checkpoint instead.")
        token = file.tokens[bos]
        core.post_processor = TemplateProcessing([token, "$A"], special_tokens=[(token, bos)])
    return core


def _byte_level(file: GGUFFile) -> Tokenizer:
    merges = _get(file, "merges")
    if not isinstance(merges, tuple):
        raise HQError(f"{file.path} has no merges: name the model's checkpoint instead.")
    name = str(_get(file, "pre"))
    if name not in PRE_TOKENIZERS:
        raise HQError(
            f"The tokenizer of {file.path} splits as {name}, but hq knows "
            f"{', '.join(PRE_TOKENIZERS)}: name the model's checkpoint instead."
        )
    pre_tokenizer = PRE_TOKENIZERS[name]
    core = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(file.tokens)},
            [(left, right) for left, right in (str(m).split(" ", 1) for m in merges)],
            ignore_merges=pre_tokenizer.ignore_merges,
        )
    )
    core.normalizer = normalizers.NFC() if pre_tokenizer.nfc else None
    core.pre_tokenizer = pre_tokenizers.Sequence([_step(step) for step in pre_tokenizer.steps])
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(file: GGUFFile) -> Tokenizer:
    unknown = _get(file, "unknown_token_id")
    core = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(file.tokens)},
            _merges(file),
            unk_token=file.tokens[unknown] if isinstance(unknown, int) else None,
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    escape = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if _get(file, "add_space_prefix", True):
        core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), escape])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        core.normalizer = escape
    core.decoder = decoders.Sequence(steps)
    return core


def _merges(file: GGUFFile) -> list[tuple[str, str]]:
    """Every pair of pieces that forms a piece, the highest score first, as llama.cpp merges."""
    scores, types = _get(file, "scores"), _get(file, "token_type")
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


_KINDS: dict[str, Callable[[GGUFFile], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}
"""The kinds of tokenizer that hq reads, by llama.cpp's names."""


def _step(step: str) -> Any:
    return _STEPS[step]() if step in _STEPS else pre_tokenizers.Split(Regex(step), "isolated")


def _types(file: GGUFFile) -> list[int]:
    """llama.cpp's types of the tokens; empty if the file has none."""
    types = _get(file, "token_type")
    return types.tolist() if isinstance(types, np.ndarray) else []


def _add_special_tokens(core: Tokenizer, file: GGUFFile) -> None:
    """Add control tokens as special ones, and user-defined tokens, which are never split."""
    control_ids = {_get(file, f"{role}_token_id") for role in _CONTROL}
    control, user_defined = [], []
    for index, (token, kind) in enumerate(zip(file.tokens, _types(file), strict=False)):
        if kind == TokenType.CONTROL or index in control_ids:
            control.append(AddedToken(token, special=True, normalized=False))
        elif kind == TokenType.USER_DEFINED:
            user_defined.append(AddedToken(token, normalized=False))
    core.add_special_tokens(control)
    core.add_tokens(user_defined)
