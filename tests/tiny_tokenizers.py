"""Tiny trained tokenizers, one of each kind that a GGUF file can contain, and texts for them."""

import random
from collections.abc import Callable
from pathlib import Path

import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

SPECIAL = ("<unk>", "<s>", "</s>")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_Step = pre_tokenizers.PreTokenizer


def _split(numbers: str) -> list[_Step]:
    regex = Regex(_WORDS + numbers + _REST)
    return [pre_tokenizers.Split(regex, "isolated"), _bytes(False)]


def _bytes(words: bool) -> _Step:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)


# By llama.cpp's name of the pre-tokenizer.
BYTE_LEVEL: dict[str, Callable[[], list[_Step]]] = {
    "gpt-2": lambda: [_bytes(True)],
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), _bytes(True)],
    "qwen2": lambda: _split(r"\p{N}"),
    "smaug-bpe": lambda: _split(r"\p{N}{1,3}"),
    "llama-bpe": lambda: _split(r"\p{N}{1,3}"),
}


def byte_level(
    size: int, pre: str = "gpt-2", every_byte: bool = True, special: tuple[str, ...] = SPECIAL
) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE of exactly `size` tokens; without `every_byte` a lossy one may be smaller."""
    core = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    core.pre_tokenizer = pre_tokenizers.Sequence(BYTE_LEVEL[pre]())
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if every_byte else []
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        limit_alphabet=max(len(alphabet), size - 16),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    assert core.get_vocab_size() == size
    return _finished(core)


def sentencepiece(size: int, spaces: str = "prepend") -> hf.PreTrainedTokenizerFast:
    """As transformers makes one of SentencePiece's BPE: bytes, pieces, and every merge there can be.

    `spaces`: "prepend" as Llama 2, "never" as Gemma, "first" and "always" as `Metaspace` has them.
    """
    escape, prepend = normalizers.Replace(" ", "▁"), normalizers.Prepend("▁")
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([prepend, escape])
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = size - len(SPECIAL) - 256
    trainer = trainers.BpeTrainer(vocab_size=pieces, show_progress=False)
    trained.train_from_iterator(_corpus(), trainer)
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    ranked = [piece for piece, _ in learned]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *ranked]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(
        models.BPE(
            vocabulary, _all_merges(ranked), unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    if spaces == "prepend":
        core.normalizer = normalizers.Sequence([prepend, escape])
    elif spaces == "never":
        core.normalizer = escape
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert core.get_vocab_size() == size
    return _finished(core)


def _all_merges(ranked: list[str]) -> list[tuple[str, str]]:
    known = set(ranked)
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _finished(core: Tokenizer) -> hf.PreTrainedTokenizerFast:
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",  # otherwise Qwen adds another one
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    """A fixed text: words, numbers, punctuation and runs of spaces."""
    return [(Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")]


_PIECES: tuple[Callable[[random.Random], str], ...] = (
    lambda r: "".join(r.choices("abcdefghijklmnopqrstuvwxyzABCDEFXYZ", k=r.randint(1, 9))),
    lambda r: r.choice(["the model", "self.weight", "don't", "I'LL", "we've", "it's 5"]),
    lambda r: str(r.randrange(10 ** r.randint(1, 9))),
    lambda r: r.choice([" ", "\n", "\t", "\r\n", "  "]) * r.randint(1, 7),
    lambda r: r.choice(["  if x == 0:\n    return {}", "a[i] += 1;", "</div>", "x->y::z", "\\n"]),
    lambda r: "".join(r.choices("🚀😶🌫️👩‍👩‍👧🇨🇭✅", k=r.randint(1, 4))),
    lambda r: "".join(
        r.choices("éüßñçøłżÅΩλжитдяשלוםمرحبا你好世界東京ไทยहिन्दी", k=r.randint(1, 6))
    ),
    lambda r: "".join(r.choices("!?.,;:'\"()[]{}<>@#$%^&*-_=+|/~`…—«»°²½①٣", k=r.randint(1, 5))),
    lambda r: "".join(chr(_scalar(r)) for _ in range(r.randint(1, 4))),
)


def texts(count: int = 1000, seed: int = 0, special: tuple[str, ...] = SPECIAL[1:]) -> list[str]:
    """Random texts of all kinds; every fifth contains special tokens."""
    r = random.Random(seed)
    made = []
    for i in range(count):
        pieces = [r.choice(_PIECES)(r) for _ in range(r.randint(1, 12))]
        if special and i % 5 == 0:
            for _ in range(r.randint(1, 3)):
                pieces.insert(r.randint(0, len(pieces)), r.choice(special))
        made.append("".join(p + r.choice(["", " "]) for p in pieces))
    return made


def _scalar(r: random.Random) -> int:
    """Any character except NUL, which ends a text in C, and surrogates."""
    return r.choice([r.randrange(1, 0x250), r.randrange(1, 0xD800), r.randrange(0xE000, 0x110000)])
