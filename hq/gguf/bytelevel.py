"""Byte-level BPE, as GPT-2 has it: llama.cpp is given the merges and its name of the pre-tokenizer.

A pre-tokenizer is recognised by its structure, which is all that decides how it splits.
"""

from pathlib import Path
from typing import Any

from hq.errors import HQError
from hq.gguf.tokens import Core, Tokens, refusal, tokens_by_id

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _WORDS + r"\p{N}" + _REST
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST

# The steps, and whether a word that is a token skips the merges: llama.cpp's name.
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((_QWEN2, "bytes"), False): "qwen2",
    ((_LLAMA3, "bytes"), False): "smaug-bpe",
    ((_LLAMA3, "bytes"), True): "llama-bpe",
}


def byte_level(checkpoint: Path, core: Core) -> Tokens:
    """Raises HQError for a pre-tokenizer without a line in the table, naming its steps."""
    normalizer = core["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise refusal(checkpoint, f"normalizes by {normalizer['type']}", "does not")
    steps = tuple(_step(checkpoint, step) for step in _steps(core["pre_tokenizer"]))
    structure = steps, bool(core["model"]["ignore_merges"])
    if structure not in _NAMES:
        raise refusal(
            checkpoint,
            f"splits by {steps} with ignore_merges {structure[1]}",
            f"splits as {', '.join(_NAMES.values())} do (if it does know this one, add its name to "
            "the table in hq/gguf/bytelevel.py)",
        )
    return Tokens("gpt2", _NAMES[structure], tokens_by_id(core), {})


def steps_of(name: str, file: str) -> tuple[tuple[str, ...], bool]:
    """The steps of llama.cpp's pre-tokenizer of that name, and whether whole words skip the merges.

    Raises HQError, naming the file, for a name that is not in the table.
    """
    for structure, named in _NAMES.items():
        if named == name:
            return structure
    known = ", ".join(_NAMES.values())
    raise HQError(
        f"The tokenizer of {file} splits as {name}, and hq knows {known}: name the model's "
        "checkpoint instead."
    )


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    steps: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return steps


def _step(checkpoint: Path, step: dict[str, Any]) -> str:
    """A step as the table spells it: a regular expression, or what kind it is."""
    if step.get("add_prefix_space"):
        raise refusal(checkpoint, "puts a space before every text", "does not")
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
