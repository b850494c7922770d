"""Records of countryinfo, airportsdata and periodictable, with the corrections applied."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import import_module
from typing import Any

from harness.judges.text import normalise
from harness.scenarios.facts.corrections import NO_CITY, corrected, is_distinctive, is_kept
from harness.scenarios.facts.names import (
    CAPITAL_ALIASES,
    COUNTRY_ALIASES,
    NOT_NAMES,
    TERRITORIES,
    WITH_ARTICLE,
)
from hq.errors import HQError

# Without these limits a few large countries would be most of the questions.
CITIES_PER_COUNTRY = 40
PROVINCES_PER_COUNTRY = 40

_LATIN = re.compile(r"[A-Za-zÀ-ɏ .'’-]{4,}")
_PLACE = re.compile(r"[^\W\d_](?:[^\W\d_]|[ .'’-])+")


@dataclass(frozen=True, slots=True)
class Country:
    """A country or territory. A field that is missing or ambiguous is None."""

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
        """The name as it appears within a sentence: "the Netherlands"."""
        bare = self.name.removeprefix("The ")
        return f"the {bare}" if self.code in WITH_ARTICLE or bare != self.name else bare


@dataclass(frozen=True, slots=True)
class Place:
    """A province or a city; `country` is an ISO code, `part` a home nation such as Scotland."""

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
    """Import a package that only this scenario needs. Raises HQError if it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise HQError(f"The scenario 'facts' needs {name}: pip install 'hq[embedded]'.") from error


@cache
def countries() -> Mapping[str, Country]:
    """Return every country and territory by its ISO code, sorted by code."""
    listed = [_country(entry) for name, entry in _entries().items() if is_kept("entry", name)]
    return {country.code: country for country in sorted(listed, key=lambda c: c.code)}


@cache
def _entries() -> dict[str, Mapping[str, Any]]:
    listed = _package("countryinfo").CountryInfo.all()
    return {entry["name"]: dict(entry) for entry in listed.values()}


def _code(entry: Mapping[str, Any]) -> str:
    return str(entry["ISO"]["alpha2"])


def _country(entry: Mapping[str, Any]) -> Country:
    code = _code(entry)
    name = corrected("name", code, entry["name"]) or entry["name"]
    spellings = [s for s in entry.get("altSpellings", []) if _LATIN.fullmatch(s)]
    aliases = (name, entry["name"], *COUNTRY_ALIASES.get(code, ()), *spellings)
    capital = corrected("capital", code, _text(entry.get("capital")))
    return Country(
        code=code,
        name=name,
        aliases=distinct(
            a for a in aliases if a not in NOT_NAMES or a in COUNTRY_ALIASES.get(code, ())
        ),
        sovereign=code not in TERRITORIES,
        capital=distinct((capital, *CAPITAL_ALIASES.get(code, ()))) if capital else None,
        continent=corrected("continent", code, _text(entry.get("region"))),
        currency=corrected("currency", code, _single(entry.get("currencies"))),
        demonym=_text(entry.get("demonym")),
        domain=_single(d for d in entry.get("tld", []) if re.fullmatch(r"\.[a-z]{2}", d)),
        calling_code=corrected("calling_code", code, _single(entry.get("callingCodes"))),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _single(values: Iterable[str] | None) -> str | None:
    """Return the value if there is exactly one, else None."""
    listed = list(values or ())
    return listed[0] if len(listed) == 1 else None


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, each also with "St" for "Saint" and without apostrophes, in order."""
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
    """Return first-level regions of sovereign states with a name that only one country has."""
    unique = [province for province in _all_provinces() if _is_in_one_country(province)]
    return _at_most(PROVINCES_PER_COUNTRY, unique)


@cache
def _all_provinces() -> tuple[Place, ...]:
    places: dict[Place, None] = {}
    for name, entry in _entries().items():
        if not is_kept("entry", name) or not is_kept("provinces", _code(entry)):
            continue
        for province in entry.get("provinces", []):
            bare = re.sub(r"\s*\(.*", "", province).strip()
            if _PLACE.fullmatch(bare) and is_kept("place", bare) and _is_state(_code(entry)):
                places[Place(bare, _code(entry), _home_nation(_code(entry)))] = None
    return tuple(places)


def _is_state(code: str) -> bool:
    return code in countries() and countries()[code].sovereign


def _home_nation(code: str) -> str:
    # countryinfo has separate entries for Scotland and Wales, so GB's provinces are English.
    return "England" if code == "GB" else ""


@cache
def cities() -> tuple[Place, ...]:
    """Return cities with an airport and a name that only one country has.

    Capitals and names of provinces are left out. If a country has too many cities, the larger ones
    are taken.
    """
    taken = {normalise(p.name) for p in provinces()} | {
        normalise(name) for country in countries().values() for name in country.capital or ()
    }
    places: dict[tuple[str, str], Place] = {}
    for row in _by_rank(_airport_rows()):
        name = row["city"].removesuffix(" City")
        if normalise(name) not in taken and is_kept("place", name) and not NO_CITY.search(name):
            part = row["subd"] if row["country"] == "GB" else ""
            places.setdefault((row["country"], normalise(name)), Place(name, row["country"], part))
    unique = [city for city in places.values() if _is_in_one_country(city)]
    return _at_most(CITIES_PER_COUNTRY, unique, ranked=True)


def _by_rank(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort cities with several airports first, then those with an international one."""
    airports_of = Counter((row["country"], row["city"]) for row in rows)
    return sorted(
        rows,
        key=lambda row: (
            -airports_of[row["country"], row["city"]],
            "International" not in row["name"],
            _hash_order(row["iata"]),
        ),
    )


@cache
def airports() -> tuple[Airport, ...]:
    """Return international airports of sovereign states, in a fixed arbitrary order."""
    international = [
        Airport(row["iata"], row["city"], row["country"])
        for row in _airport_rows()
        if "International" in row["name"]
    ]
    return tuple(sorted(international, key=lambda airport: _hash_order(airport.code)))


@cache
def _iata() -> dict[str, dict[str, Any]]:
    return {code: dict(row) for code, row in _package("airportsdata").load("IATA").items()}


@cache
def _airport_rows() -> list[dict[str, Any]]:
    rows = [row | {"city": " ".join(row["city"].split())} for row in _iata().values()]
    return [r for r in rows if _is_state(r["country"]) and _PLACE.fullmatch(r["city"])]


@cache
def _countries_of_name() -> Mapping[str, set[str]]:
    """Normalised place name to the ISO codes of all countries with a place of that name."""
    codes: dict[str, set[str]] = defaultdict(set)
    for entry in _entries().values():
        code = entry["ISO"].get("alpha2", "GB")  # Scotland's entry has no code
        listed = entry.get("provinces", []) if is_kept("provinces", code) else []
        for province in listed:
            codes[normalise(re.sub(r"\s*\(.*", "", province))].add(code)
    for row in _iata().values():
        for name in (row["subd"], row["city"], *re.split(r"[-/(),]", row["city"])):
            codes[normalise(name.removesuffix(" City"))].add(row["country"])
    for country in countries().values():
        for name in (*country.aliases, *(country.capital or ())):
            codes[normalise(name)].add(country.code)
    return codes


def _is_in_one_country(place: Place) -> bool:
    name = normalise(place.name)
    return is_distinctive(name) and _countries_of_name()[name] <= {place.country}


def _at_most(count: int, places: list[Place], ranked: bool = False) -> tuple[Place, ...]:
    """At most `count` places per country: the first if ranked, else a fixed arbitrary choice."""
    order = places if ranked else sorted(places, key=lambda p: _hash_order(f"{p.country}/{p.name}"))
    by_country: dict[str, list[Place]] = defaultdict(list)
    for place in order:
        by_country[place.country].append(place)
    return tuple(p for country in sorted(by_country) for p in by_country[country][:count])


def _hash_order(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()


@cache
def elements() -> tuple[Element, ...]:
    """Return the 118 elements, sorted by atomic number."""
    listed = [e for e in _package("periodictable").elements if e.number > 0]
    return tuple(Element(e.name, e.symbol, e.number) for e in listed)
