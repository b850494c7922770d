"""Quantities in answers: numbers with sign, scale and unit, and how two of them compare."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from harness.judges.text import fold


class Match(IntEnum):
    """How a given quantity compares with the accepted one; a larger value is closer."""

    OTHER = 0
    UNCLEAR = 1  # ambiguous digits, rounded, or the era is missing
    SAME = 2


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written, with its unit."""

    value: float
    also: float | None = None  # another value that counts: "+44 207" begins with the code 44
    doubtful: float | None = None  # a possible reading: "1.234" is 1,234 in some countries
    decimals: int = 0
    dimension: str = ""
    factor: float = 1.0  # of the unit, in units of the dimension
    era: str = ""  # "bc" or "ad"
    far: float | None = None  # the other end of a range, or the other side of a ratio
    joint: str = ""  # "-" for a range, ":" for a ratio


def compare_quantities(accepted: Quantity, given: Quantity) -> Match:
    """Return whether the given quantity is the accepted one."""
    if accepted.joint or given.joint:
        return _match_joint(accepted, given)
    if accepted.dimension and given.dimension:
        if accepted.dimension != given.dimension:
            return Match.OTHER
        if accepted.factor != given.factor:
            return _converted(accepted, given)
    elif accepted.factor != given.factor and _equal(
        accepted.value * accepted.factor, given.value * given.factor
    ):
        return Match.SAME  # 50% and 0.5
    return min(_match_values(accepted, given), _match_eras(accepted.era, given.era))


def _match_values(accepted: Quantity, given: Quantity) -> Match:
    if _equal(accepted.value, given.value) or _equal(accepted.value, given.also):
        return Match.SAME
    if _equal(accepted.value, given.doubtful) or _equal(given.value, accepted.doubtful):
        return Match.UNCLEAR
    coarse = min(accepted.decimals, given.decimals)
    rounded = {round(accepted.value, coarse), round(given.value, coarse)}
    return Match.UNCLEAR if coarse and len(rounded) == 1 else Match.OTHER


def _match_joint(accepted: Quantity, given: Quantity) -> Match:
    ends = given.value, given.far
    if accepted.joint:
        return Match(2 * (accepted.joint == given.joint and (accepted.value, accepted.far) == ends))
    return Match.UNCLEAR if given.joint == "-" and accepted.value in ends else Match.OTHER


def _match_eras(accepted: str, given: str) -> Match:
    if accepted == given or {accepted, given} == {"", "ad"}:
        return Match.SAME
    return Match.UNCLEAR if "" in (accepted, given) else Match.OTHER


def _converted(accepted: Quantity, given: Quantity) -> Match:
    a, g = accepted.value * accepted.factor, given.value * given.factor
    if _equal(a, g):
        return Match.SAME
    return Match.UNCLEAR if math.isclose(a, g, rel_tol=0.01) else Match.OTHER


def _equal(a: float, b: float | None) -> bool:
    return b is not None and math.isclose(a, b, rel_tol=1e-9)


def _units() -> dict[str, tuple[str, float]]:
    spellings = {
        ("length", 1e-3): "mm millimetre millimeter millimetres millimeters",
        ("length", 1e-2): "cm centimetre centimeter centimetres centimeters",
        ("length", 1.0): "m metre meter metres meters",
        ("length", 1e3): "km kilometre kilometer kilometres kilometers kms",
        ("length", 0.0254): "inch inches",
        ("length", 0.3048): "ft foot feet",
        ("length", 0.9144): "yd yard yards",
        ("length", 1609.344): "mi mile miles",
        ("mass", 1e-6): "mg milligram milligrams",
        ("mass", 1e-3): "g gram grams gramme grammes",
        ("mass", 1.0): "kg kilogram kilograms kilo kilos",
        ("mass", 1e3): "tonne tonnes",
        ("mass", 0.45359237): "lb lbs",
        ("time", 1.0): "sec second seconds secs",
        ("time", 60.0): "min minute minutes mins",
        ("time", 3600.0): "hr hour hours hrs",
        ("time", 86400.0): "day days",
        ("time", 604800.0): "week weeks",
        ("time", 31557600.0): "year years yr yrs",
        ("volume", 1e-3): "ml millilitre milliliter millilitres milliliters",
        ("volume", 1.0): "l litre liter litres liters",
        ("speed", 1.0): "m/s",
        ("speed", 1 / 3.6): "km/h kph kmh",
        ("speed", 0.44704): "mph",
        ("share", 0.01): "% percent pct",
        ("temperature in Celsius", 1.0): "°c celsius centigrade",
        ("temperature in Fahrenheit", 1.0): "°f fahrenheit",
        ("temperature in kelvin", 1.0): "k kelvin kelvins",
        ("dollars", 1.0): "$ usd us$ dollar dollars",
        ("euros", 1.0): "€ eur euro euros",
        ("pounds sterling", 1.0): "£ gbp",
        ("yen", 1.0): "¥ jpy yen",
        ("rupees", 1.0): "₹ inr rupee rupees",
    }
    return {word: unit for unit, words in spellings.items() for word in words.split()}


_UNITS = _units()
_CURRENCY = r"(?:us\$|usd|eur|gbp|[$€£¥₹])"
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_SHORT_SCALES = {"k": 1e3, "bn": 1e9, "mn": 1e6}
_VALUES = {word: float(n) for n, word in enumerate(_ONES)} | {
    word: 10.0 * n for n, word in enumerate(_TENS, start=2)
}
_WORD = "|".join(sorted([*_VALUES, *_SCALES], key=len, reverse=True))
NUMBER_WORDS = re.compile(rf"\b(?:{_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{_WORD}))*\b", re.IGNORECASE)
"""Matches a number in words, including "one" and "hundred"."""
_NUMBER = (
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:['’]\d{3})+(?:\.\d+)?"
    r"|\d{1,3}\.\d{3}(?:,\d+)|\d{1,3}(?:[ ]\d{3})+(?:[.,]\d+)?(?![\d,.]*\d)|\d+[.,]\d+|\d+|\.\d+"
)
_UNIT_NAMES = "|".join(map(re.escape, sorted([*_UNITS, "c", "f"], key=len, reverse=True)))
_QUANTITY = re.compile(
    rf"""(?<![\w.,/:^])(?<!\w[-'’])
    (?P<before>(?:a\.?d\.?|anno\ domini)\s*)?
    (?P<sign>[-–+]\s?(?={_CURRENCY}?\d)|(?:minus|negative)\s+)?
    (?P<currency>{_CURRENCY}\s?)?
    (?:(?P<whole>\d+)\s)?(?P<over>\d+)\s?[/⁄]\s?(?P<under>[1-9]\d*)(?![\w/⁄])
    |(?<![\w.,/:^])(?<!\w[-'’])
    (?P<era1>(?:a\.?d\.?|anno\ domini)\s*)?
    (?P<sign1>[-–+]\s?(?={_CURRENCY}?[.\d])|(?:minus|negative)\s+)?
    (?P<currency1>{_CURRENCY}\s?)?
    (?P<number>{_NUMBER})
    (?:(?:\s?[x×*]\s?10|e)\^?\s?(?P<power>[-−+]?\d+)|\^(?P<raised>\d+))?
    (?:(?P<joint>\s?[-–—]\s?|\s(?:to|and|until)\s|:)(?P<far>\d+(?:\.\d+)?)(?![\w:]))?
    (?P<ordinal>(?:st|nd|rd|th)\b)?
    |(?<![\w.])(?P<sign2>(?:minus|negative)\s+)?
    (?P<words>(?:{_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{_WORD}))*)(?!\w)
    """,
    re.VERBOSE,
)
_AFTER = re.compile(
    rf"""(?:\s?(?P<scale>{"|".join(_SCALES)})\b|(?P<short>{"|".join(_SHORT_SCALES)})(?![\w]))?
    (?:(?:\s?|-)(?P<degrees>°\s?|degrees?\s+)?(?P<unit>{_UNIT_NAMES})(?:²|³|\^?[23])?(?!\w))?
    (?P<bare>\s?(?:°|degrees?\b))?
    (?P<below>\s?below(?:\s+(?:zero|freezing))?)?
    (?:\s?(?P<era>b\.?\s?c\.?(?:\s?e\b\.?)?|before\s+christ|a\.?\s?d\b\.?|c\.?e\b\.?)(?!\w))?
    """,
    re.VERBOSE,
)
_MIXED = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")  # 2½ is not 21/2
_AROUND = re.compile(
    r"(?:about|approximately|around|roughly|nearly|almost|circa|ca|c|exactly|some|the year|year|in"
    r"|is|=|~|≈|[\s.,:;!?*\"'()])*"
)


@lru_cache(maxsize=1 << 16)
def as_quantity(text: str) -> Quantity | None:
    """Return the quantity if the text is one, apart from words such as "about"; else None.

    Ordinals are not quantities, nor are numbers with a leading zero, which are codes ("007").
    """
    plain = _plain(text)
    start = _AROUND.match(plain)
    first = next(_scan(plain, start.end() if start else 0), None)
    if first is None:
        return None
    quantity, begin, end = first
    is_all = begin <= (start.end() if start else 0) and _AROUND.fullmatch(plain, end)
    is_code = re.match(r"[-+]?0\d", plain[begin:]) is not None
    is_ordinal = math.isnan(quantity.value)
    return quantity if is_all and not is_code and not is_ordinal else None


@lru_cache(maxsize=1 << 12)
def quantities(text: str) -> tuple[Quantity, ...]:
    """Return every quantity in a text, in order."""
    return tuple(quantity for quantity, _, _ in _scan(_plain(text), 0))


def _plain(text: str) -> str:
    return fold(_MIXED.sub(" ", text)).lower().strip()


def _scan(plain: str, start: int) -> Iterator[tuple[Quantity, int, int]]:
    """Yield each quantity after `start` with the indices where it begins and ends."""
    while (number := _QUANTITY.search(plain, start)) is not None:
        after = _AFTER.match(plain, number.end())
        assert after is not None  # every part of the pattern is optional
        start = max(after.end(), number.end())
        if _is_idiom(plain, number, after):
            continue
        if not _continues_as_name(plain, start):
            yield _quantity(number, after), number.start(), start


def _is_idiom(plain: str, number: re.Match[str], after: re.Match[str]) -> bool:
    """Whether "one" is not a number here: "one of the best", "no one"."""
    if number["words"] != "one" or after["unit"]:
        return False
    alone = plain[: number.start()].strip() == "" or re.search(
        r"\b(?:is|was|are|only|just|exactly|number)\s+$", plain[: number.start()]
    )
    return not (alone and re.fullmatch(r"\W*", plain[after.end() :]))


def _continues_as_name(plain: str, end: int) -> bool:
    """Whether the number is the beginning of a name: "33rpm", "747-400er", "4x4"."""
    return re.match(r"\w|[-'’]\w|[.,:/^]\d", plain[end:]) is not None


def _quantity(number: re.Match[str], after: re.Match[str]) -> Quantity:
    sign = number["sign"] or number["sign1"] or number["sign2"] or ""
    below = after["below"] is not None
    negative = -1.0 if below or sign.strip() not in ("", "+") else 1.0
    scale = _SCALES.get(after["scale"] or "", _SHORT_SCALES.get(after["short"] or "", 1.0))
    value, also, doubtful, decimals = _values(number, sign.startswith("+"))
    dimension, factor = _unit(number, after)
    era = after["era"] or number["before"] or number["era1"] or ""
    far = number["far"]
    joint = (number["joint"] or "").strip()
    scaled = negative * scale
    return Quantity(
        value=scaled * value,
        also=None if also is None else scaled * also,
        doubtful=None if doubtful is None else scaled * doubtful,
        decimals=0 if scale != 1.0 else decimals,
        dimension=dimension,
        factor=factor,
        era=("bc" if era.startswith("b") else "ad") if era else "",
        far=None if far is None else _far(value, far, joint),
        joint="" if far is None else ":" if joint == ":" else "-",
    )


def _far(near: float, far: str, joint: str) -> float:
    """The other end of a range or ratio: 1918 for "1914-18"."""
    end, digits = float(far), len(far)
    if joint != ":" and end < near and digits < len(f"{near:.0f}"):
        return near - near % 10.0**digits + end
    return end


def _unit(number: re.Match[str], after: re.Match[str]) -> tuple[str, float]:
    name = (number["currency"] or number["currency1"] or after["unit"] or "").strip()
    if after["unit"] in ("c", "f"):
        name = f"°{name}"
    return _UNITS.get(name, ("", 1.0))


_Values = tuple[float, float | None, float | None, int]
"""`value`, `also`, `doubtful` and `decimals` of a quantity."""


def _values(number: re.Match[str], is_code: bool) -> _Values:
    if number["words"]:
        return value_of_words(number["words"]), None, None, 0
    if number["over"]:
        part = float(number["over"]) / float(number["under"])
        return float(number["whole"] or 0) + part, None, None, 0
    value, also, doubtful, decimals = _values_of_digits(number["number"], is_code)
    if number["ordinal"]:  # the 33rd may mean 33
        return math.nan, None, value, 0
    if number["raised"]:
        return float(value ** float(number["raised"])), None, None, 0
    if number["power"]:
        return value * 10.0 ** float(number["power"]), None, None, 0
    return value, also, doubtful, decimals


def _values_of_digits(number: str, is_code: bool) -> _Values:
    if " " in number:
        joined, first = float(number.replace(" ", "").replace(",", ".")), float(number.split()[0])
        return joined, first if is_code else None, None, 0
    marks = [mark for mark in number if mark in ".,'’"]
    if not marks:
        return float(number), None, None, 0
    *_, fraction = re.split(r"[.,]", number)
    digits = re.sub(r"[.,'’]", "", number)
    if len(set(marks)) == 2:  # 1,234.5 and 1.234,5
        return float(f"{digits[: -len(fraction)]}.{fraction}"), None, None, len(fraction)
    if len(marks) > 1 or marks[0] in "'’":
        return float(digits), None, None, 0
    fractional, thousands = float(number.replace(",", ".")), float(digits)
    if len(fraction) != 3 or number.startswith(("0", ".", ",")):
        return fractional, None, None, len(fraction)
    if marks[0] == ",":
        return thousands, None, None if number.endswith("0") else fractional, 0
    return fractional, None, thousands, 3


def value_of_words(text: str) -> float:
    """Return the value of number words in lower case: "two hundred and six", "nineteen ten"."""
    total = part = 0.0
    last = math.inf
    for word in re.findall(rf"\b(?:{_WORD})\b", text):
        value = _VALUES.get(word)
        if word == "hundred":
            part = max(part, 1.0) * 100
        elif value is None:
            total += max(part, 1.0) * _SCALES[word]
            part = 0.0
        elif value >= 10 and 10 <= part < 100:  # a year in pairs
            part = part * 100 + value
        else:
            part += value
        last = value if value is not None else last
    return total + part
