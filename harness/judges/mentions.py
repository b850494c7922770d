"""Whether a text names an answer: the one rule by which every judge looks inside a sentence."""

import re
from itertools import takewhile

from harness.judges.names import spellings
from harness.judges.quantities import Match, Quantity, match, quantities, whole
from harness.judges.text import UNSPACED, contains, fold, normalise

# Symbols and codes that are words of a sentence: "He is", "In the", "No".
_WORDS = frozenset(
    "a am as at be he i in is it me my no of on or so to us we an by do go if".split()
)
_SHORT = 2
_ALTERED = r"(?:\s|-)+(?:sharp|flat|plus|minus|(?:rh\s?)?(?:positive|negative))\b"
_IS = "是为為叫乃はがもの"


def mentions(text: str, names: tuple[str, ...], others: tuple[str, ...] = ()) -> bool:
    """Whether the text holds one of the names on word boundaries.

    A quantity must have the same value, sign and unit. A name of one or two characters, or a code
    of digits, must stand as a token in its own case. One of `others` that holds a name's words
    ("Guinea-Bissau" for "Guinea") is read as itself.
    """
    quantity_names = tuple(name for name in names if whole(name))
    if quantity_names and nearest(text, quantity_names) is Match.SAME:
        return True
    rest = tuple(name for name in names if not whole(name))
    return any(_has_token(text, name) for name in rest if _is_short(normalise(name))) or _has_words(
        text, tuple(name for name in rest if not _is_short(normalise(name))), others
    )


def nearest(text: str, names: tuple[str, ...]) -> Match:
    """How near the text's quantities come to those among the names."""
    accepted = [quantity for name in names if (quantity := whole(name))]
    given = _given(text)
    return max((match(a, g) for a in accepted for g in given), default=Match.OTHER)


def _given(text: str) -> tuple[Quantity, ...]:
    alone = whole(text)
    return (alone,) if alone else quantities(text)


def is_answer(text: str, names: tuple[str, ...]) -> bool:
    """Whether the text is one of the names, and nothing else."""
    said = set(spellings(text))
    for name in names:
        accepted, given = whole(name), whole(text)
        if accepted and given:
            if match(accepted, given) is Match.SAME:
                return True
        elif normalise(name) and said & set(spellings(name)):
            return True
    return False


_SENTENCE = re.compile("[是为為叫在的位于於はがのでにと]|คือ|เป็น|อยู่")
_GENERIC = frozenset(("", *"市省县縣州国國都府人城"))
_INFLECTED = 3  # letters by which an inflected form may end differently
_STEM = 4  # letters at least that it shares with the name
_INFLECTING = re.compile("[\u0370-\u03ff\u0400-\u052f\u0590-\u06ff\u0900-\u0dff\u10a0-\u10ff]")
_FOREIGN_ARTICLE = re.compile(
    r"(?:le|la|les|el|los|las|il|lo|gli|der|die|das|het|os|as|l)\s+(?=\S)"
)


def is_near(text: str, names: tuple[str, ...]) -> bool:
    """Whether the text may hold one of the names, so that the rules cannot tell.

    An inflected form in a script that is not Latin ("в Москве" for Москва), the name without its
    article ("Havre" for "Le Havre"), or a number that has another reading, rounding or era.
    """
    if nearest(text, names) is Match.UNCLEAR:
        return True
    said = normalise(text)
    return any(
        (_FOREIGN_ARTICLE.match(name) and said == _FOREIGN_ARTICLE.sub("", name, count=1))
        or (_INFLECTING.search(name) and _is_inflected(said, name))
        for name in map(normalise, names)
    )


def is_longer_name(text: str, names: tuple[str, ...]) -> bool:
    """Whether the text is one word without spaces that has more than a name: 印度尼西亚 for 印度.

    A sentence is none, which its verb or particles show, nor is the name with "city" or "country".
    """
    said = normalise(text).replace(" ", "")
    if not re.fullmatch(f"[{UNSPACED}]+", said) or _SENTENCE.search(said):
        return False
    own = [plain for name in names if (plain := normalise(name).replace(" ", "")) in said]
    return bool(own) and all(said.replace(plain, "", 1) not in _GENERIC for plain in own)


def _is_inflected(said: str, name: str) -> bool:
    """Whether the text has every word of the name, but for endings and short prefixes."""
    return all(any(_alike(part, word) for word in said.split()) for part in name.split())


def _alike(a: str, b: str) -> bool:
    if a == b:
        return True
    same = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    shared = sum(1 for _ in same)
    if shared >= _STEM and max(len(a), len(b)) - shared <= _INFLECTED:
        return True
    return len(a) >= _STEM and b.endswith(a) and len(b) - len(a) <= _INFLECTED


def _has_words(text: str, names: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether the text has a name's words, both in one way of spelling them."""
    if not names:
        return False
    spelled = [spellings(name) for name in names]
    different = [spellings(other) for other in others]
    for way, answer in enumerate(spellings(text)):
        own = {name[way] for name in spelled}
        bare = _without_lookalikes(answer, own, {other[way] for other in different} - own)
        if any(_contains(bare, name) for name in own):
            return True
    return False


# Particles that Korean writes onto a noun: "서울은", "서울입니다".
_PARTICLE = (
    "(?:은|는|이|가|을|를|의|에|에서|에게|로|으로|와|과|도|만|이다|다|입니다|이에요|예요|이었다|였다"
    "|이었습니다|였습니다|라고|이라고|이며|이고|란|이란)"
)
_KOREAN = re.compile("[가-힣]$")


def _contains(answer: str, name: str) -> bool:
    if contains(answer, name):
        return True
    if not _KOREAN.search(name):
        return False
    return re.search(rf"(?<!\S){re.escape(name)}{_PARTICLE}(?!\S)", answer) is not None


def _without_lookalikes(answer: str, names: set[str], others: set[str]) -> str:
    """The answer without those of `others` that hold a name among their words."""
    for other in sorted(others, key=len, reverse=True):
        if any(contains(other, name) for name in names):
            answer = f" {answer} ".replace(f" {other} ", " ").strip()
    return answer


def _is_short(plain: str) -> bool:
    is_symbol = 0 < len(plain) <= _SHORT and (plain.isascii() or len(plain) == 1)
    return is_symbol or plain.replace(" ", "").isdigit()


def _has_token(text: str, name: str) -> bool:
    """Whether `name` stands in the text as a token of its own, in its own case.

    A code must not be part of a longer one; a symbol that is also an English word must not be
    followed by another word ("He is" is not helium), and none by what makes it another name (F
    sharp). One character of a script without spaces must stand alone or after "is".
    """
    folded, bare = fold(text), fold(name).strip()
    token = re.escape(bare)
    if re.fullmatch(f"[{UNSPACED}]", bare):
        return re.search(rf"(?:^|[^\w]|[{_IS}]){token}(?:$|[^\w]|[でだ])", folded) is not None
    bounds = rf"(?<![\w.,])(?<!\w[-'’]){token}(?!\w|[-'’]\w|[.,]\d|[#♭+]|-(?![\w-]))(?!{_ALTERED})"
    if bare.lower() in _WORDS:
        bounds += r"(?!\s+\w|,\s+(?:it|that|this|there|they|he|she|i|you|we)\b)"
    return re.search(bounds, folded) is not None
