"""How byte-level tokenizers split a text into words, by llama.cpp's names.

GGUF files store only the name of the pre-tokenizer. Models of one architecture differ in it, and
models of several architectures share it, so the common ones are listed here; a family can register
another one with `register_pre_tokenizer`.
"""

from dataclasses import dataclass, replace

from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A sequence of splits.

    Each step is a regular expression whose matches are split off, or "words" (GPT-2's expression,
    then bytes), "bytes" (bytes only) or "digits" (every digit is a word).
    """

    steps: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is not made of merges
    written: bool = False  # hq gives this name to a checkpoint whose tokenizer has these steps
    adds_bos: bool = False  # a text begins with the BOS token if the file does not say so
    nfc: bool = False  # texts were NFC-normalized in training; llama.cpp does not normalize


PRE_TOKENIZERS: Registry[PreTokenizer] = Registry("pre-tokenizer")
"""By llama.cpp's names (`tokenizer.ggml.pre`)."""


def register_pre_tokenizer(pre_tokenizer: PreTokenizer, name: str, *aliases: str) -> None:
    """Register a pre-tokenizer under its name, and under other names that only files have."""
    PRE_TOKENIZERS.add(name, pre_tokenizer)
    for alias in aliases:
        PRE_TOKENIZERS.add(alias, replace(pre_tokenizer, written=False))


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = PreTokenizer((_WORDS + r"\p{N}" + _REST, "bytes"), written=True)
_LLAMA3 = PreTokenizer((_WORDS + r"\p{N}{1,3}" + _REST, "bytes"), written=True)
_LLAMA3_WHOLE = replace(_LLAMA3, ignore_merges=True)

register_pre_tokenizer(
    PreTokenizer(("words",), written=True),
    "gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "trillion", "granite-docling",
)  # fmt: skip
register_pre_tokenizer(
    PreTokenizer(("digits", "words"), written=True),
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
)  # fmt: skip
register_pre_tokenizer(replace(_QWEN2, nfc=True), "qwen2")
register_pre_tokenizer(
    replace(_QWEN2, written=False),
    "deepseek-r1-qwen", "stablelm2", "hunyuan", "solar-open", "megrez", "kormo",
)  # fmt: skip
register_pre_tokenizer(_LLAMA3, "smaug-bpe", "dbrx", "chatglm-bpe")
register_pre_tokenizer(
    replace(_LLAMA3_WHOLE, adds_bos=True),
    "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "midm-2.0", "lfm2",
)  # fmt: skip
register_pre_tokenizer(replace(_LLAMA3_WHOLE, written=False), "glm4", "glm5")

# Letters by case: at most one change from upper to lower case within a word.
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
register_pre_tokenizer(
    PreTokenizer(
        (_CASED % ("", "") + r"|\p{N}" + _CASED_REST, "bytes"), ignore_merges=True, adds_bos=True
    ),
    "tekken",
)
register_pre_tokenizer(
    PreTokenizer((_CASED % (_ENDINGS, _ENDINGS) + r"|\p{N}{1,3}" + _CASED_REST, "bytes")),
    "gpt-4o", "llama4", "kanana2",
)  # fmt: skip
register_pre_tokenizer(
    PreTokenizer((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK, "bytes")), "deepseek-v3"
)
