"""Text normalisation, which every comparison of answers in the harness uses."""

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# Letters that Unicode does not decompose into a base letter and an accent, and Arabic variants.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ı": "i", "þ": "th", "ß": "ss", "æ": "ae", "œ": "oe"}
    | {"Ø": "O", "Ł": "L", "Đ": "D", "Ð": "D", "Þ": "Th", "Æ": "Ae", "Œ": "Oe", "ẞ": "SS"}
    | {"ى": "ي", "ـ": "", "−": "-", "♯": "#"}
)
_POWER = re.compile("(?<=[0-9])(?=[⁻⁺]?[⁰¹²³⁴-⁹])")  # 10⁸ is not 108
# In these scripts a combining mark is an accent or a vowel point; in others, part of the letter.
_ACCENTED = ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW")
_BREVE = "\u0306"  # Cyrillic й is a letter of its own, not и with an accent
_LETTER_LIKE = "ʻʼʹʽ"  # apostrophes that Unicode counts as letters
# Symbols that are part of a name: C# and C++, F♭, AB+ and AB-, Ca2+, Disney+.
_MEANT = (
    r"(?<=[^\W\d_])(?:\+\+|[+#♭])(?![\w+#])|(?<=[^\W\d_]\d)\+(?!\w)"
    r"|(?<=\b[^\W\d_])-(?![\w-])|(?<=\b[^\W\d_][^\W\d_])-(?![\w-])"
)
_SYMBOL = re.compile(rf"(?P<meant>{_MEANT})|[^\w\s]|[_{_LETTER_LIKE}]")
_ARTICLE = re.compile(r"(?<!\S)(?:a|an|the)(?!\S)(?=\s*\S)|(?<!\w)ال(?=\w{3})")
# Scripts without spaces: Thai, Lao, Burmese, Khmer, hiragana, Han. Not katakana, where a run is one
# word, nor Hangul, as Korean separates words.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u309f\u3005-\u3007\u3400-\u9fff"
_UNSPACED = re.compile(f"[{UNSPACED}\U00020000-\U0003ffff]")


def fold(text: str) -> str:
    """Resolve HTML entities, character widths, digits and accents; case is kept.

    "São Tomé" becomes "Sao Tome", "１２" and "١٢" become "12". Invisible characters are removed.
    """
    if text.isascii() and "&" not in text:
        return text
    marked = unicodedata.normalize("NFKD", _POWER.sub("^", html.unescape(text)))
    return unicodedata.normalize("NFC", "".join(_bare(marked))).translate(_PLAIN)


def _bare(marked: str) -> Iterator[str]:
    """Yield the characters without accents and format characters such as soft hyphens."""
    letter = ""
    for char in marked:
        if unicodedata.combining(char):
            if letter and (not _is_accented(letter) or (char == _BREVE and letter in "иИуУ")):
                yield char
            continue
        category = unicodedata.category(char)
        letter = char if category[0] == "L" else letter if category[0] == "M" else ""
        if category == "Nd":
            yield str(unicodedata.decimal(char))
        elif category != "Cf" and not "\ufe00" <= char <= "\ufe0f":
            yield char


@lru_cache(maxsize=1 << 12)
def _is_accented(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_ACCENTED)


@lru_cache(maxsize=1 << 17)  # the same aliases are compared with every response
def normalise(text: str) -> str:
    """Normalise text as TriviaQA does, with accents folded, for every script.

    Lower case, underscores and punctuation to spaces, articles removed, spaces collapsed
    (`normalize_answer` in TriviaQA's evaluation script). Differences: a final article is kept, as
    "Vitamin A" would become "vitamin", which "Vitamin C" contains; a symbol that is part of a name
    is kept ("C#", "AB-"); "&" becomes "and"; every character of a script without spaces is a word.
    """
    folded = fold(text.replace("_", " ")).casefold().replace("&", " and ")
    spaced = _UNSPACED.sub(r" \g<0> ", _SYMBOL.sub(_spaced, folded))
    return " ".join(_ARTICLE.sub(" ", spaced).split())


def _spaced(symbol: re.Match[str]) -> str:
    if symbol["meant"]:
        return symbol["meant"]
    if symbol[0].isascii() or symbol[0] in _LETTER_LIKE:
        return " "
    kind = unicodedata.category(symbol[0])[0]
    if kind == "M":  # a vowel sign of Devanagari
        return symbol[0]
    return " " if kind == "P" else f" {symbol[0]} "  # ☿ may be an answer


def contains(text: str, phrase: str) -> bool:
    """Return whether a normalised text contains a normalised, non-empty phrase as whole words."""
    return bool(phrase) and f" {phrase} " in f" {text} "
