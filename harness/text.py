"""Normalised text: the one way in which answers are compared, anywhere in the harness."""

import re
import string
import unicodedata
from functools import lru_cache

# Letters that Unicode does not decompose into a plain letter and an accent.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ı": "i", "þ": "th", "ß": "ss", "æ": "ae", "œ": "oe"}
    | {"Ø": "O", "Ł": "L", "Đ": "D", "Ð": "D", "Þ": "Th", "Æ": "Ae", "Œ": "Oe", "ẞ": "SS"}
)
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}‘’´`“”–—…¿¡ʻʼʹ]")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b(?=\s*\S)")


def fold(text: str) -> str:
    """Text without its accents: "São Tomé" becomes "Sao Tome"; case is kept."""
    marked = unicodedata.normalize("NFKD", text)
    bare = "".join(char for char in marked if not unicodedata.combining(char))
    return bare.translate(_PLAIN)


@lru_cache(maxsize=1 << 17)  # the same aliases are compared with every response
def normalise(text: str) -> str:
    """TriviaQA's official normalisation, with accents folded.

    Lower case, underscores and punctuation to spaces, articles dropped, spaces collapsed
    (`normalize_answer` in TriviaQA's evaluation script). Unlike there, a final article stays, so
    that "Vitamin A" is not "vitamin", which "Vitamin C" would contain.
    """
    spaced = _PUNCTUATION.sub(" ", fold(text.replace("_", " ")).lower())
    return " ".join(_ARTICLE.sub(" ", spaced).split())


def contains(text: str, phrase: str) -> bool:
    """Whether a normalised text holds a normalised, non-empty phrase as whole words."""
    return bool(phrase) and f" {phrase} " in f" {text} "
