"""Whether a text mentions a name: the rule that all judges share."""

import re
from itertools import takewhile

from harness.judges.names import spellings
from harness.judges.quantities import Match, Quantity, as_quantity, compare_quantities, quantities
from harness.judges.text import UNSPACED, contains, fold, normalise

# Symbols and codes that are also English words: "He is", "In the", "No".
_WORDS = frozenset(
    "a am as at be he i in is it me my no of on or so to us we an by do go if".split()
)
_SHORT = 2
_ALTERED = r"(?:\s|-)+(?:sharp|flat|plus|minus|(?:rh\s?)?(?:positive|negative))\b"
_IS = "是为為叫乃はがもの"


def mentions(text: str, names: tuple[str, ...], others: tuple[str, ...] = ()) -> bool:
    """Return whether the text contains one of the names on word boundaries.

    Args:
        text: A sentence or a line.
        names: Names, of which one is enough. A quantity must agree in value, sign and unit. A name
            of one or two characters, or a code of digits, must be a token in its own case.
        others: Names of other things. One that contains a name's words ("Guinea-Bissau" for
            "Guinea") does not count as that name.
    """
    quantity_names = tuple(name for name in names if as_quantity(name))
    if quantity_names and _best_match(text, quantity_names) is Match.SAME:
        return True
    rest = tuple(name for name in names if not as_quantity(name))
    return any(_has_token(text, name) for name in rest if _is_short(normalise(name))) or _has_words(
        text, tuple(name for name in rest if not _is_short(normalise(name))), others
    )


def _best_match(text: str, names: tuple[str, ...]) -> Match:
    """The best match between the text's quantities and those among the names."""
    accepted = [quantity for name in names if (quantity := as_quantity(name))]
    given = _quantities_in(text)
    return max((compare_quantities(a, g) for a in accepted for g in given), default=Match.OTHER)


def _quantities_in(text: str) -> tuple[Quantity, ...]:
    single = as_quantity(text)
    return (single,) if single else quantities(text)


def is_answer(text: str, names: tuple[str, ...]) -> bool:
    """Return whether the text is one of the names and nothing else."""
    given_spellings = set(spellings(text))
    for name in names:
        accepted, given = as_quantity(name), as_quantity(text)
        if accepted and given:
            if compare_quantities(accepted, given) is Match.SAME:
                return True
        elif normalise(name) and given_spellings & set(spellings(name)):
            return True
    return False


_SENTENCE = re.compile("[是为為叫在的位于於はがのでにと]|คือ|เป็น|อยู่")
_GENERIC = frozenset(("", *"市省县縣州国國都府人城"))
_ENDING = 3  # the most letters by which an inflected form may differ from the name
_STEM = 4  # the fewest letters that the two must share
_INFLECTING = re.compile("[\u0370-\u03ff\u0400-\u052f\u0590-\u06ff\u0900-\u0dff\u10a0-\u10ff]")
_FOREIGN_ARTICLE = re.compile(
    r"(?:le|la|les|el|los|las|il|lo|gli|der|die|das|het|os|as|l)\s+(?=\S)"
)


def is_near(text: str, names: tuple[str, ...]) -> bool:
    """Return whether the text may mention one of the names, which the rules cannot decide.

    That is an inflected form in a script other than Latin ("в Москве" for Москва), the name without
    its article ("Havre" for "Le Havre"), or a number that is ambiguous, rounded or without its era.
    """
    if _best_match(text, names) is Match.UNCLEAR:
        return True
    plain = normalise(text)
    return any(
        (_FOREIGN_ARTICLE.match(name) and plain == _FOREIGN_ARTICLE.sub("", name, count=1))
        or (_INFLECTING.search(name) and _is_inflected(plain, name))
        for name in map(normalise, names)
    )


def is_longer_name(text: str, names: tuple[str, ...]) -> bool:
    """Return whether an unspaced text is a longer word that contains a name: 印度尼西亚 for 印度.

    A sentence, recognised by its verb or particles, is not; nor is the name with "city" or
    "country".
    """
    word = normalise(text).replace(" ", "")
    if not re.fullmatch(f"[{UNSPACED}]+", word) or _SENTENCE.search(word):
        return False
    contained = [plain for name in names if (plain := normalise(name).replace(" ", "")) in word]
    return bool(contained) and all(word.replace(p, "", 1) not in _GENERIC for p in contained)


_BEGINNING = 3  # letters of a word that a misspelling or derived form keeps: Croatia, Croatian


def resembles(text: str, name: str) -> bool:
    """Return whether the text contains the name, or a word like each of its words.

    Two words are alike if they begin with the same `_BEGINNING` letters. A name with shorter words
    or with digits must be mentioned exactly; a symbol is a token in its own case, even if it is
    also an English word ("the symbol At is").
    """
    symbol = rf"(?<!\w){re.escape(fold(name))}(?!\w)"
    if mentions(text, (name,)) or re.search(symbol, fold(text)):
        return True
    parts, words = normalise(name).split(), normalise(text).split()
    if any(len(part) <= _BEGINNING or not part.isalpha() for part in parts):
        return False
    return all(any(w.startswith(part[:_BEGINNING]) for w in words) for part in parts)


def _is_inflected(text: str, name: str) -> bool:
    """Whether the text has every word of the name, apart from endings and short prefixes."""
    return all(any(_are_alike(part, word) for word in text.split()) for part in name.split())


def _are_alike(a: str, b: str) -> bool:
    if a == b:
        return True
    same = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    shared = sum(1 for _ in same)
    if shared >= _STEM and max(len(a), len(b)) - shared <= _ENDING:
        return True
    return len(a) >= _STEM and b.endswith(a) and len(b) - len(a) <= _ENDING


def _has_words(text: str, names: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether the text has a name's words in one of the three spellings."""
    if not names:
        return False
    name_spellings = [spellings(name) for name in names]
    other_spellings = [spellings(other) for other in others]
    for way, answer in enumerate(spellings(text)):
        plain = {name[way] for name in name_spellings}
        different = {other[way] for other in other_spellings} - plain
        rest = _without_lookalikes(answer, plain, different)
        if any(_contains(rest, name) for name in plain):
            return True
    return False


# Particles that Korean appends to a noun: "서울은", "서울입니다".
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
    """The answer without those of `others` that contain a name."""
    for other in sorted(others, key=len, reverse=True):
        if any(contains(other, name) for name in names):
            answer = f" {answer} ".replace(f" {other} ", " ").strip()
    return answer


def _is_short(plain: str) -> bool:
    is_symbol = 0 < len(plain) <= _SHORT and (plain.isascii() or len(plain) == 1)
    return is_symbol or plain.replace(" ", "").isdigit()


def _has_token(text: str, name: str) -> bool:
    """Whether `name` is a separate token of the text, in its own case.

    A code must not be part of a longer one. A symbol that is also an English word must not be
    followed by another word ("He is" is not helium). No symbol may be followed by a word that
    changes it (F sharp). One character of an unspaced script must be alone or after "is".
    """
    folded, bare = fold(text), fold(name).strip()
    token = re.escape(bare)
    if re.fullmatch(f"[{UNSPACED}]", bare):
        return re.search(rf"(?:^|[^\w]|[{_IS}]){token}(?:$|[^\w]|[でだ])", folded) is not None
    bounds = rf"(?<![\w.,])(?<!\w[-'’]){token}(?!\w|[-'’]\w|[.,]\d|[#♭+]|-(?![\w-]))(?!{_ALTERED})"
    if bare.lower() in _WORDS:
        bounds += r"(?!\s+\w|,\s+(?:it|that|this|there|they|he|she|i|you|we)\b)"
    return re.search(bounds, folded) is not None
