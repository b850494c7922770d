"""Whether a text names an answer: the one rule by which every judge looks inside a sentence."""

import re
from functools import lru_cache

from harness.text import contains, fold, normalise

# Symbols and codes that are words of a sentence: "He is", "In the", "No".
_WORDS = frozenset(
    "a am as at be he i in is it me my no of on or so to us we an by do go if".split()
)
_SHORT = 2
_DENIES = (
    r"(?:\bnot|n['’]t|\bnever|\brather\s+than|\binstead\s+of|\bsa(?:id|y|ying)|\bmentioned"
    r"|\banswered|(?:\bdo\s+not|\bdon['’]t)\s+(?:think|believe))"
)
_BETWEEN = r"(?:that|is|was|it|it['’]s|in|on|the|a)"
_DENIED = r"(?:is|was|are|were)(?:n['’]t\b|\s+(?:not|never)\b)(?!\s+(?:only|just)\b)"


def mentions(text: str, names: tuple[str, ...], others: tuple[str, ...] = ()) -> bool:
    """Whether the text holds one of the names on word boundaries.

    A name of one or two characters, or a number, must stand as a token in its own case. One of
    `others` that holds a name's words ("Guinea-Bissau" for "Guinea") is read as itself.
    """
    plain = {name: normalise(name) for name in names}
    answer = _without_lookalikes(normalise(text), set(plain.values()), others)
    return any(
        _has_token(text, name) if _is_short(words) else contains(answer, words)
        for name, words in plain.items()
    )


def asserts(text: str, names: tuple[str, ...], others: tuple[str, ...] = ()) -> bool:
    """As `mentions`, where the name is not denied: not in "not Lyon" or "Lyon isn't"."""
    return mentions(without_denied(text, names), names, others)


def without_denied(text: str, names: tuple[str, ...]) -> str:
    """The text, folded, without the places where it denies or takes back one of the names."""
    return _denial(names).sub(" ", fold(text)) if names else fold(text)


@lru_cache(maxsize=1 << 12)
def _denial(names: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted((fold(name).strip() for name in names), key=len, reverse=True)
    name = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"
    before = rf"{_DENIES}\s+(?:{_BETWEEN}\s+)*[\"'“‘*]*{name}"
    return re.compile(rf"{before}|{name}[\"'”’*]*\s+{_DENIED}", re.IGNORECASE)


def _is_short(plain: str) -> bool:
    return len(plain) <= _SHORT or plain.replace(" ", "").isdigit()


def _without_lookalikes(answer: str, names: set[str], others: tuple[str, ...]) -> str:
    """The answer without those of `others` that hold a name among their words."""
    different = {normalise(other) for other in others} - names
    for other in sorted(different, key=len, reverse=True):
        if any(contains(other, name) for name in names):
            answer = f" {answer} ".replace(f" {other} ", " ").strip()
    return answer


def _has_token(text: str, name: str) -> bool:
    """Whether `name` stands in the text as a token of its own, in its own case.

    A number must not be part of a longer one (33 in 1,933 or 33.5); a symbol that is also an
    English word must not be followed by another word ("He is" is not helium).
    """
    token = re.escape(fold(name).strip())
    bounds = rf"(?<![\w.,])(?<!\w[-'’]){token}(?!\w|[-'’]\w|[.,]\d)"
    if name.strip().lower() in _WORDS:
        bounds += r"(?!\s+\w)"
    return re.search(bounds, fold(text)) is not None
