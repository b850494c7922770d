"""llama.cpp's pre-tokenizers of byte-level BPE, by name: how each splits a text into words.

A pre-tokenizer is recognized by its steps, as these alone determine how it splits. A step is a
regular expression, whose matches become words, or one of:

- "words": GPT-2's regular expression, then bytes become characters;
- "bytes": bytes become characters;
- "digits": every digit becomes a word.
"""

from typing import NamedTuple

from hq.errors import HQError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _WORDS + r"\p{N}" + _REST
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST

_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class PreTokenizer(NamedTuple):
    """The steps, and whether a word that is a token skips the merges."""

    steps: tuple[str, ...]
    ignore_merges: bool


WRITABLE: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(("words",), False),
    "smollm": PreTokenizer(("digits", "words"), False),
    "qwen2": PreTokenizer((_QWEN2, "bytes"), False),
    "smaug-bpe": PreTokenizer((_LLAMA3, "bytes"), False),
    "llama-bpe": PreTokenizer((_LLAMA3, "bytes"), True),
}
"""The pre-tokenizers that hq writes and reads."""
_READ_ONLY: dict[str, PreTokenizer] = {
    "tekken": PreTokenizer((_CASED % ("", "") + r"|\p{N}" + _CASED_REST, "bytes"), True),
    "gpt-4o": PreTokenizer(
        (_CASED % (_ENDINGS, _ENDINGS) + r"|\p{N}{1,3}" + _CASED_REST, "bytes"), False
    ),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK, "bytes"), False),
}
# Other names in llama.cpp of pre-tokenizers that split in the same way.
_ALIASES = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "trillion", "granite-docling"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "hunyuan", "solar-open", "megrez", "kormo"),
    "smaug-bpe": ("dbrx", "chatglm-bpe"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "midm-2.0", "lfm2", "glm4", "glm5"),
    "gpt-4o": ("llama4", "kanana2"),
}
PRE_TOKENIZERS: dict[str, PreTokenizer] = WRITABLE | _READ_ONLY
"""All pre-tokenizers that hq reads, by every name that llama.cpp has for them."""
PRE_TOKENIZERS |= {
    alias: PRE_TOKENIZERS[name] for name, aliases in _ALIASES.items() for alias in aliases
}
BOS_BY_DEFAULT = frozenset(
    {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "midm-2.0", "lfm2", "tekken"}
)
"""Pre-tokenizers with which a text begins with the BOS token unless the file says otherwise."""
NFC_NORMALIZED = frozenset({"qwen2"})
"""Pre-tokenizers of models that were trained on text in NFC; llama.cpp does not normalize."""


def pre_tokenizer_of(name: str, file: str) -> PreTokenizer:
    """llama.cpp's pre-tokenizer of that name. Raises HQError, naming the file, if it is unknown."""
    if name not in PRE_TOKENIZERS:
        raise HQError(
            f"The tokenizer of {file} splits as {name}, but hq knows "
            f"{', '.join((*WRITABLE, *_READ_ONLY))} and their aliases: name the model's checkpoint "
            "instead."
        )
    return PRE_TOKENIZERS[name]
