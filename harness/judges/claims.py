"""What a text claims of the names in it: whether it denies them, or offers others too."""

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
    """As `mentions`, where the name is not denied: not in "not Lyon" or "Lyon isn't".

    For a talk about what somebody said: a name after "you said" is not asserted either.
    """
    return mentions(_without(text, names, said=True), names, others)


def without_denied(text: str, names: tuple[str, ...]) -> str:
    """The text, folded, without the places where it denies or takes back one of the names."""
    return _without(text, names, said=False)


def _without(text: str, names: tuple[str, ...], said: bool) -> str:
    return _denial(names, said).sub(" ", fold(text)) if names else fold(text)


@lru_cache(maxsize=1 << 12)
def _denial(names: tuple[str, ...], said: bool) -> re.Pattern[str]:
    name = _named(names)
    nots = _NOT + (_SAID if said else "")
    # "not Lyon or Paris", where each of them may be the name
    some = rf"(?:[\w'’.-]+\s+){{0,3}}?[\w'’.-]+{_ALSO}"
    before = rf"(?:{nots})\s+(?:{_DOING})?(?:{_BETWEEN}\s+)*(?:{some})?[\"'“‘«*]*{name}"
    after = _DENIED if said else rf"(?:{_DENIED}|{_DID_NOT})"
    asian = (
        rf"{_CHINESE_NOT}[「“]?{name}|{name}[」”]?(?:{_CHINESE_NOT}|{_JAPANESE_NOT}|{_KOREAN_NOT})"
    )
    return re.compile(rf"{before}|{name}[\"'”’»*]*\s+{after}|{asian}", re.IGNORECASE)


@lru_cache(maxsize=1 << 12)
def _named(names: tuple[str, ...]) -> str:
    """A regex over folded text for the names as they are spelled, on word boundaries."""
    longest_first = sorted((fold(name).strip() for name in names), key=len, reverse=True)
    known = [name for name in longest_first if name]
    words = [re.escape(name) for name in known if not re.search(f"[{UNSPACED}가-힣]", name)]
    others = [re.escape(name) for name in known if re.search(f"[{UNSPACED}가-힣]", name)]
    bounded = [rf"(?<!\w)(?:{'|'.join(words)})(?!\w)"] if words else []
    return rf"(?:{'|'.join([*bounded, *others]) or '(?!)'})"


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
_SHORT_ITEM = 3  # words of an item of a bare list


def hedges(text: str, names: tuple[str, ...]) -> bool:
    """Whether the text offers one of the names and another answer beside it.

    "Lyon or Paris" does; so does a bare list ("Lyon, Nice and Paris"). "Paris, France" does not,
    nor "the US or United States", where both are names.
    """
    own = tuple(name for name in names if _OR.search(name) or _ITEM.search(name))
    if own and mentions(text, own):  # a name that is itself "Laurel and Hardy"
        return False
    return _is_choice(text, names) or _is_list(text, names)


def _is_choice(text: str, names: tuple[str, ...]) -> bool:
    *firsts, _ = parts = _OR.split(text)
    for left, right in zip(firsts, parts[1:], strict=True):
        if _NO_OTHER.match(right.lower()):
            continue
        ended = any(_ends(left, name) for name in names)
        begun = any(_begins(_FILLER.sub("", right), name) for name in names)
        if ended != begun and right.strip() and left.strip():
            return True
    return False


def _ends(text: str, name: str) -> bool:
    return mentions(" ".join(text.split()[-_length(name) :]), (name,))


def _begins(text: str, name: str) -> bool:
    return mentions(" ".join(text.split()[: _length(name)]), (name,))


def _length(name: str) -> int:
    return max(len(name.split()), 1)


def _is_list(text: str, names: tuple[str, ...]) -> bool:
    """Whether the whole text is a list of short items, of which some but not all are the names."""
    line = text.strip(" .!*")
    items = [item for item in _ITEM.split(line) if item.strip()]
    joined = re.search(r"\s(?:and|&|or|und|et|y)\s", line) is not None
    if len(items) < 2 or not joined or any(len(item.split()) > _SHORT_ITEM for item in items):
        return False
    named = [is_answer(item, names) for item in items]
    return any(named) and not all(named)
