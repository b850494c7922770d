"""countryinfo, airportsdata and periodictable as clean records, with `facts_rules` applied."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import import_module
from typing import Any

from harness.judges.text import normalise
from harness.scenarios.facts_names import (
    CAPITAL_ALIASES,
    COUNTRY_ALIASES,
    NOT_NAMES,
    TERRITORIES,
    WITH_ARTICLE,
)
from harness.scenarios.facts_rules import NO_CITY, is_telling, kept, ruled
from hq.errors import HQError

# Of each country at most so many, or a few large countries would be most of the questions.
CITIES_PER_COUNTRY = 40
PROVINCES_PER_COUNTRY = 40

_LATIN = re.compile(r"[A-Za-zÀ-ɏ .'’-]{4,}")
_PLACE = re.compile(r"[^\W\d_](?:[^\W\d_]|[ .'’-])+")


@dataclass(frozen=True, slots=True)
class Country:
    """A country or territory; every field but code, name and aliases may be missing (None)."""

    code: str  # ISO 3166 alpha-2
    name: str
    aliases: tuple[str, ...]  # the name first
    sovereign: bool
    capital: tuple[str, ...] | None  # the name first, then spellings
    continent: str | None
    currency: str | None  # ISO 4217
    demonym: str | None
    domain: str | None
    calling_code: str | None

    @property
    def phrase(self) -> str:
        """The name as a sentence has it: "the Netherlands"."""
        bare = self.name.removeprefix("The ")
        return f"the {bare}" if self.code in WITH_ARTICLE or bare != self.name else bare


@dataclass(frozen=True, slots=True)
class Place:
    """A province or a city, and the ISO code of its country; `part` is Scotland and the like."""

    name: str
    country: str
    part: str = ""


@dataclass(frozen=True, slots=True)
class Airport:
    """An airport of international rank."""

    code: str  # IATA
    city: str
    country: str


@dataclass(frozen=True, slots=True)
class Element:
    """A chemical element by its name, symbol and atomic number."""

    name: str
    symbol: str
    number: int


def _package(name: str) -> Any:
    """A package of facts, which only this scenario needs. HQError when it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise HQError(f"The scenario 'facts' needs {name}: pip install 'hq[embedded]'.") from error


@cache
def countries() -> Mapping[str, Country]:
    """Every country and territory by its ISO code, in the order of the codes."""
    found = [_country(entry) for name, entry in _entries().items() if kept("entry", name)]
    return {country.code: country for country in sorted(found, key=lambda c: c.code)}


@cache
def _entries() -> dict[str, Mapping[str, Any]]:
    listed = _package("countryinfo").CountryInfo.all()
    return {entry["name"]: dict(entry) for entry in listed.values()}


def _code(entry: Mapping[str, Any]) -> str:
    return str(entry["ISO"]["alpha2"])


def _country(entry: Mapping[str, Any]) -> Country:
    code = _code(entry)
    name = ruled("name", code, entry["name"]) or entry["name"]
    spellings = [s for s in entry.get("altSpellings", []) if _LATIN.fullmatch(s)]
    aliases = (name, entry["name"], *COUNTRY_ALIASES.get(code, ()), *spellings)
    capital = ruled("capital", code, _text(entry.get("capital")))
    return Country(
        code=code,
        name=name,
        aliases=distinct(a for a in aliases if a not in NOT_NAMES or a in _wanted(code)),
        sovereign=code not in TERRITORIES,
        capital=distinct((capital, *CAPITAL_ALIASES.get(code, ()))) if capital else None,
        continent=ruled("continent", code, _text(entry.get("region"))),
        currency=ruled("currency", code, _single(entry.get("currencies"))),
        demonym=_text(entry.get("demonym")),
        domain=_single(d for d in entry.get("tld", []) if re.fullmatch(r"\.[a-z]{2}", d)),
        calling_code=ruled("calling_code", code, _single(entry.get("callingCodes"))),
    )


def _wanted(code: str) -> tuple[str, ...]:
    return COUNTRY_ALIASES.get(code, ())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _single(values: Iterable[str] | None) -> str | None:
    """The one value, or None where there is none or a choice."""
    listed = list(values or ())
    return listed[0] if len(listed) == 1 else None


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The names in their order, with "St" beside "Saint", bare of apostrophes, none twice."""
    spelled = dict.fromkeys(
        variant for name in names for variant in (name, _saint(name), re.sub("['’]", "", name))
    )
    return tuple(spelled)


def _saint(name: str) -> str:
    if "Saint " in name:
        return name.replace("Saint ", "St. ")
    return re.sub(r"\bSt\.? ", "Saint ", name)


@cache
def provinces() -> tuple[Place, ...]:
    """First-level regions of sovereign states whose names lie in one country only."""
    named = _provinces_of_record()
    return _at_most(PROVINCES_PER_COUNTRY, [p for p in named if _lies_only_there(p)])


@cache
def _provinces_of_record() -> tuple[Place, ...]:
    found: dict[Place, None] = {}
    for name, entry in _entries().items():
        if not kept("entry", name) or not kept("provinces", _code(entry)):
            continue
        for province in entry.get("provinces", []):
            bare = re.sub(r"\s*\(.*", "", province).strip()
            if _PLACE.fullmatch(bare) and kept("place", bare) and _is_state(_code(entry)):
                found[Place(bare, _code(entry), _home_nation(_code(entry)))] = None
    return tuple(found)


def _is_state(code: str) -> bool:
    return code in countries() and countries()[code].sovereign


def _home_nation(code: str) -> str:
    # countryinfo keeps Scotland and Wales apart, so what it lists for GB is English.
    return "England" if code == "GB" else ""


@cache
def cities() -> tuple[Place, ...]:
    """Cities with an airport whose names lie in one country only, capitals and provinces aside.

    The larger come first when a country has too many.
    """
    taken = {normalise(p.name) for p in provinces()} | {
        normalise(name) for country in countries().values() for name in country.capital or ()
    }
    found: dict[tuple[str, str], Place] = {}
    for row in _by_rank(_airport_rows()):
        name = row["city"].removesuffix(" City")
        if normalise(name) not in taken and kept("place", name) and not NO_CITY.search(name):
            part = row["subd"] if row["country"] == "GB" else ""
            found.setdefault((row["country"], normalise(name)), Place(name, row["country"], part))
    unique = [city for city in found.values() if _lies_only_there(city)]
    return _at_most(CITIES_PER_COUNTRY, unique, ranked=True)


def _by_rank(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cities with several airports first, then those with an international one."""
    airports_of = Counter((row["country"], row["city"]) for row in rows)
    return sorted(
        rows,
        key=lambda row: (
            -airports_of[row["country"], row["city"]],
            "International" not in row["name"],
            _lot(row["iata"]),
        ),
    )


@cache
def airports() -> tuple[Airport, ...]:
    """International airports of sovereign states, each with its city, in an arbitrary order."""
    found = [
        Airport(row["iata"], row["city"], row["country"])
        for row in _airport_rows()
        if "International" in row["name"]
    ]
    return tuple(sorted(found, key=lambda airport: _lot(airport.code)))


@cache
def _iata() -> dict[str, dict[str, Any]]:
    return {code: dict(row) for code, row in _package("airportsdata").load("IATA").items()}


@cache
def _airport_rows() -> list[dict[str, Any]]:
    rows = [row | {"city": " ".join(row["city"].split())} for row in _iata().values()]
    return [r for r in rows if _is_state(r["country"]) and _PLACE.fullmatch(r["city"])]


@cache
def _homes() -> Mapping[str, set[str]]:
    """For every name of a place, the countries that have one of that name."""
    homes: dict[str, set[str]] = defaultdict(set)
    for entry in _entries().values():
        home = entry["ISO"].get("alpha2", "GB")  # Scotland's entry has no code
        listed = entry.get("provinces", []) if kept("provinces", home) else []
        for province in listed:
            homes[normalise(re.sub(r"\s*\(.*", "", province))].add(home)
    for row in _iata().values():
        for name in (row["subd"], row["city"], *re.split(r"[-/(),]", row["city"])):
            homes[normalise(name.removesuffix(" City"))].add(row["country"])
    for country in countries().values():
        for own in (*country.aliases, *(country.capital or ())):
            homes[normalise(own)].add(country.code)
    return homes


def _lies_only_there(place: Place) -> bool:
    name = normalise(place.name)
    return is_telling(name) and _homes()[name] <= {place.country}


def _at_most(count: int, places: list[Place], ranked: bool = False) -> tuple[Place, ...]:
    """`count` places a country: the first where they are ranked, else a fixed random choice."""
    order = places if ranked else sorted(places, key=lambda p: _lot(f"{p.country}/{p.name}"))
    by_country: dict[str, list[Place]] = defaultdict(list)
    for place in order:
        by_country[place.country].append(place)
    return tuple(p for country in sorted(by_country) for p in by_country[country][:count])


def _lot(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()


@cache
def elements() -> tuple[Element, ...]:
    """The 118 elements in the order of their numbers."""
    listed = [e for e in _package("periodictable").elements if e.number > 0]
    return tuple(Element(e.name, e.symbol, e.number) for e in listed)
