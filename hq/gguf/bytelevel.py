"""Byte-level BPE, as GPT-2 has it: llama.cpp is given the merges and its name of the pre-tokenizer.

A pre-tokenizer is recognised by its structure, which is all that decides how it splits.
"""

from pathlib import Path
from typing import Any

from hq.gguf.tokens import Core, Tokens, refusal, tokens_by_id
from hq.models.architectures.pre_tokenizers import PRE_TOKENIZERS


def byte_level(checkpoint: Path, core: Core) -> Tokens:
    """Raises HQError for a pre-tokenizer that is not registered, naming its steps."""
    normalizer = core["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise refusal(checkpoint, f"normalizes by {normalizer['type']}", "does not")
    steps = tuple(_step(checkpoint, step) for step in _steps(core["pre_tokenizer"]))
    ignore_merges = bool(core["model"]["ignore_merges"])
    written = {
        name: PRE_TOKENIZERS[name] for name in PRE_TOKENIZERS if PRE_TOKENIZERS[name].written
    }
    for name, known in written.items():
        if (known.steps, known.ignore_merges) == (steps, ignore_merges):
            return Tokens("gpt2", name, tokens_by_id(core), {})
    raise refusal(
        checkpoint,
        f"splits by {steps} with ignore_merges {ignore_merges}",
        f"splits as {', '.join(written)} do (if llama.cpp does know this one, register its name as "
        "in hq/models/architectures/pre_tokenizers.py)",
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
