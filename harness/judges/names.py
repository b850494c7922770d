"""Spellings of one name: compounds joined or apart, numerals as digits, notes, blood groups."""

import re
from functools import lru_cache

from harness.judges.quantities import NUMBER_WORDS, value_of_words
from harness.judges.text import fold, normalise

_JOINT = re.compile(r"(?<=[^\W\d_])[-‐‑'’ʼʻ`´](?=[^\W\d_])")  # Spider-Man, Xi'an
_INITIALS = re.compile(r"(?<![^\W_])([A-Z])\.\s?(?=[A-Z]\b)")  # J. K., U.S.A.
_CAPITALS = re.compile(r"\b[IVXLCDM]+\b(?!['’.]\w)")
_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_AFTER_NAME = re.compile(r"[A-Z][\w'’-]*\s+$")
_DIGITS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_ORDINALS = {
    word: n
    for n, word in enumerate(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
        " thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"
        " twentieth".split(),
        start=1,
    )
} | {"thirtieth": 30, "fortieth": 40, "fiftieth": 50, "hundredth": 100}
_ORDINAL = re.compile(
    rf"\b(?:(twenty|thirty|forty|fifty)[-\s])?({'|'.join(_ORDINALS)})\b", re.IGNORECASE
)
_ORDINAL_DIGITS = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_SEPARATOR = re.compile(r"(?<![\d.,])\d{1,3}(?:[,'’]\d{3})+(?![\d,])")
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_MONTH = (
    r"(Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_DAY_MONTH = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?!\w)")
_MONTH_DAY = re.compile(rf"\b{_MONTH}\s+(?:the\s+)?(\d{{1,2}})(?:st|nd|rd|th)?(?![\d:])\b")
_ISO_DATE = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b")
_SIGNS = (
    (re.compile(r"\b([A-G])[-\s]sharp\b", re.IGNORECASE), r"\1#"),
    (re.compile(r"\b([A-G])[-\s]flat\b", re.IGNORECASE), r"\1♭"),
    (re.compile(r"\b(A|B|AB|O)[-\s](?:Rh(?:esus)?[-\s]?)?positive\b"), r"\1+"),
    (re.compile(r"\b(A|B|AB|O)[-\s](?:Rh(?:esus)?[-\s]?)?negative\b"), r"\1-"),
    (re.compile(r"(?<=[a-z]) Plus\b"), "+"),  # Disney Plus
)


@lru_cache(maxsize=1 << 16)
def spellings(text: str) -> tuple[str, str, str]:
    """Return the text normalised as is, with compounds and initials joined, and with digits.

    Two names are equal if they agree in one of the three: "Spider-Man" and "Spiderman" in the
    second, "Louis XIV" and "Louis the Fourteenth" in the third.
    """
    folded = fold(text)
    return (
        normalise(folded),
        normalise(_INITIALS.sub(r"\1", _JOINT.sub("", folded))),
        normalise(_numerals(folded)),
    )


def _numerals(text: str) -> str:
    """Write Roman numerals, words, ordinals and dates as digits, notes and groups as symbols."""
    text = _ISO_DATE.sub(lambda d: f"d{int(d[3])}m{int(d[2])} {d[1]}", text)
    text = _DAY_MONTH.sub(lambda d: f"d{int(d[1])}m{_month(d[2])}", text)
    text = _MONTH_DAY.sub(lambda d: f"d{int(d[2])}m{_month(d[1])}", text)
    for spelled, sign in _SIGNS:
        text = spelled.sub(sign, text)
    text = _CAPITALS.sub(lambda match: _roman(match, text), text)
    text = _ORDINAL_DIGITS.sub(r"\1", _SEPARATOR.sub(lambda n: re.sub("[,'’]", "", n[0]), text))
    text = _ORDINAL.sub(_ordinal, text)
    return NUMBER_WORDS.sub(lambda words: f"{value_of_words(words[0].lower()):.0f}", text)


def _month(name: str) -> int:
    return _MONTHS.index(name[:3].lower()) + 1


def _ordinal(match: re.Match[str]) -> str:
    tens = value_of_words(match[1].lower()) if match[1] else 0
    return f"{tens + _ORDINALS[match[2].lower()]:.0f}"


def _roman(match: re.Match[str], text: str) -> str:
    """The digits of a Roman numeral; a single letter is one only after a name, as in Henry V."""
    numeral = match[0]
    is_letter = len(numeral) == 1 and not (
        numeral in "IVX" and _AFTER_NAME.search(text[: match.start()])
    )
    if is_letter or not _ROMAN.fullmatch(numeral):
        return numeral
    values = [_DIGITS[letter] for letter in numeral]
    pairs = zip(values, [*values[1:], 0], strict=True)
    return str(sum(-value if value < following else value for value, following in pairs))
