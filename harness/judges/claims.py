"""What a text claims about the names in it: whether it asserts, denies or hedges them."""

import re
from functools import lru_cache

from harness.judges.mentions import is_answer, mentions
from harness.judges.text import UNSPACED, fold

_NOT = (
    r"\bnot|n['’]t|\bnever|\bneither|\bnor|\brather\s+than|\binstead\s+of|\bunlike"
    r"|\bcontrary\s+to|(?<!none\s)(?<!no\sone\s)(?<!nobody\s)(?<!nothing\s)\bother\s+than"
    r"|\bexcept(?:\s+for)?|(?:\bdo\s+not|\bdon['’]t)\s+(?:think|believe)|(?<!no\s)(?<!without\s)(?<!without\sa\s)\bdoubt|\bunlikely\s+to\s+be"
    r"|\bnicht|\bkeine?|\bpas|\bnon\s+(?:è|e|era)|\bno\s+(?:es|era|fue|fueron|son)|\bnao\s+(?:e|era|foi)"
    r"|\bне|\bniet|\bgeen|\bikke|\binte|\bnie\s+jest"
)
_SAID = r"|\bsa(?:id|y|ying)|\bmentioned|\banswered"
_BETWEEN = (
    r"(?:that|is|was|were|be|been|have|it|it['’]s|in|on|by|at|from|the|a|an|le|la|el|il|der|die|das|в|на"
    r"|(?:written|made|built|painted|invented|discovered|located|born|called|named|played|found"
    r"|founded|based|held|set|directed|composed|won|due|because|part)(?:\s+(?:by|in|at|on|of|to))?)"
)
_DOING = r"(?!only|just|merely|simply)\w+\s+(?:in|by|at|on)\s+"  # "did not end in 1945"
_ALSO = r"(?:\s*,?\s*(?:or|nor)\s+(?:the\s+)?)"
_DENIED = (
    r"(?:(?:is|was|are|were)(?:n['’]t\b|\s+(?:not|never)\b)(?!\s+(?:only|just|merely|simply)\b)"
    r"|(?:is|was|are|were)\s+(?:incorrect|wrong|false|a\s+mistake)\b)"
)
_DID_NOT = (
    r"(?:did|does|do|has|have|had|could|can|would|will)(?:n['’]t|\s*not|\s+never)\b"
    r"(?!\s+(?:only|just|merely|simply)\b)"
)
_CHINESE_NOT = r"(?:不是|不叫|並非|并非|而非|不在)"
_JAPANESE_NOT = r"(?:では|じゃ)(?:ない|ありません|なく)"
_KOREAN_NOT = r"(?:이|가)?\s?아니"


def asserts(text: str, names: tuple[str, ...], others: tuple[str, ...] = ()) -> bool:
    """Return whether the text mentions one of the names without denying or only reporting it.

    "Not Lyon" and "Lyon isn't" deny; "you said Lyon" reports what somebody said.
    """
    return mentions(_without_denied(text, names, reported=True), names, others)


def without_denied(text: str, names: tuple[str, ...]) -> str:
    """Return the text, folded, without the passages that deny or retract one of the names."""
    return _without_denied(text, names, reported=False)


def _without_denied(text: str, names: tuple[str, ...], reported: bool) -> str:
    folded = fold(text)
    # A denial has the name in it, and its pattern takes milliseconds to compile.
    if not _name(names).search(folded):
        return folded
    return _denial(names, reported).sub(" ", folded)


@lru_cache(maxsize=1 << 12)
def _name(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(_name_pattern(names), re.IGNORECASE)


@lru_cache(maxsize=1 << 12)
def _denial(names: tuple[str, ...], reported: bool) -> re.Pattern[str]:
    """A pattern of passages that deny one of the names or, if `reported`, report it."""
    name = _name_pattern(names)
    nots = _NOT + (_SAID if reported else "")
    # "not Lyon or Paris", where either may be the name
    some = rf"(?:[\w'’.-]+\s+){{0,3}}?[\w'’.-]+{_ALSO}"
    before = rf"(?:{nots})\s+(?:{_DOING})?(?:{_BETWEEN}\s+)*(?:{some})?[\"'“‘«*]*{name}"
    after = _DENIED if reported else rf"(?:{_DENIED}|{_DID_NOT})"
    asian = (
        rf"{_CHINESE_NOT}[「“]?{name}|{name}[」”]?(?:{_CHINESE_NOT}|{_JAPANESE_NOT}|{_KOREAN_NOT})"
    )
    return re.compile(rf"{before}|{name}[\"'”’»*]*\s+{after}|{asian}", re.IGNORECASE)


@lru_cache(maxsize=1 << 12)
def _name_pattern(names: tuple[str, ...]) -> str:
    """A regex over folded text for the names as spelled, on word boundaries."""
    longest_first = sorted((fold(name).strip() for name in names), key=len, reverse=True)
    folded = [name for name in longest_first if name]
    words = [re.escape(name) for name in folded if not re.search(f"[{UNSPACED}가-힣]", name)]
    unspaced = [re.escape(name) for name in folded if re.search(f"[{UNSPACED}가-힣]", name)]
    bounded = [rf"(?<!\w)(?:{'|'.join(words)})(?!\w)"] if words else []
    return rf"(?:{'|'.join([*bounded, *unspaced]) or '(?!)'})"


_OR = re.compile(
    r"\s*,?\s*\b(?:or|oder|ou|или|або|veya)\b\s+|(?<=[^\W\d_])\s*/\s*(?=[^\W\d_])|或者?|または|それとも"
)
_NO_OTHER = re.compile(
    r"(?:so|more|less|fewer|later|earlier|thereabouts|simply|just|not|nothing|approximately|about)\b"
)
_FILLER = re.compile(
    r"^[\s,]*(?:(?:maybe|perhaps|possibly|even|the|a|in|is|it's|it)\b[\s,]*)*", re.I
)
_ITEM = re.compile(r"\s*[,;、]\s*(?:and\s+|or\s+|&\s*)?|\s+(?:and|&|und|et|y)\s+")
_ITEM_WORDS = 3  # the most words of an item in a bare list


def hedges(text: str, names: tuple[str, ...]) -> bool:
    """Return whether the text offers one of the names together with another answer.

    "Lyon or Paris" does, and a bare list ("Lyon, Nice and Paris"). "Paris, France" does not, nor
    "the US or United States", where both are names.
    """
    compound = tuple(name for name in names if _OR.search(name) or _ITEM.search(name))
    if compound and mentions(text, compound):  # a name such as "Laurel and Hardy"
        return False
    return _is_choice(text, names) or _is_list(text, names)


def _is_choice(text: str, names: tuple[str, ...]) -> bool:
    *firsts, _ = parts = _OR.split(text)
    for left, right in zip(firsts, parts[1:], strict=True):
        if _NO_OTHER.match(right.lower()):
            continue
        before = any(_ends_with(left, name) for name in names)
        after = any(_begins_with(_FILLER.sub("", right), name) for name in names)
        if before != after and right.strip() and left.strip():
            return True
    return False


def _ends_with(text: str, name: str) -> bool:
    return mentions(" ".join(text.split()[-_length(name) :]), (name,))


def _begins_with(text: str, name: str) -> bool:
    return mentions(" ".join(text.split()[: _length(name)]), (name,))


def _length(name: str) -> int:
    return max(len(name.split()), 1)


def _is_list(text: str, names: tuple[str, ...]) -> bool:
    """Whether the entire text is a list of short items, of which some but not all are names."""
    line = text.strip(" .!*")
    items = [item for item in _ITEM.split(line) if item.strip()]
    joined = re.search(r"\s(?:and|&|or|und|et|y)\s", line) is not None
    if len(items) < 2 or not joined or any(len(item.split()) > _ITEM_WORDS for item in items):
        return False
    is_name = [is_answer(item, names) for item in items]
    return any(is_name) and not all(is_name)
