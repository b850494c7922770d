"""A transformers tokenizer of what a GGUF file says, for byte-level BPE: the way back of writing.

Transformers' own reading loses steps of the pre-tokenizer and may add a token.
"""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hq.errors import HQError
from hq.gguf.bytelevel import steps_of
from hq.gguf.file import GGUFFile
from hq.gguf.tokens import TokenType

_PREFIX = "tokenizer.ggml."
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_STEPS: dict[str, Callable[[], Any]] = {
    "words": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    "digits": lambda: pre_tokenizers.Digits(individual_digits=True),
}


def byte_level_tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    """The tokenizer in the file, whose model is `gpt2`.

    Raises HQError for a pre-tokenizer that hq does not know, or a file without merges.
    """
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
    _add(core, file)
    if said.get(f"{_PREFIX}add_bos_token"):
        first = int(str(said[f"{_PREFIX}bos_token_id"]))
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
