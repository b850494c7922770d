"""The relations of the scenario `facts`: each a function from clean records to facts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.scenarios.facts_names import (
    CENTRAL_AMERICA,
    CONTINENT_ALIASES,
    CURRENCY_UNITS,
    DEMONYMS,
    NORTHERN_AMERICA,
    SOUTH_AMERICA,
)
from harness.scenarios.facts_sources import (
    Country,
    Place,
    airports,
    cities,
    countries,
    distinct,
    elements,
    provinces,
)
from hq.registry import Registry

AIRPORT_QUESTIONS = 150  # IATA codes are nearly hopeless for small models: a tail, not the bulk


@dataclass(frozen=True, slots=True)
class Fact:
    """What one question asks: `key` is unique in its relation, `aliases[0]` the answer."""

    key: str
    question: str
    aliases: tuple[str, ...]
    entity: str


@dataclass(frozen=True, slots=True)
class FactRelation:
    """How facts of one relation come about, and the type of their answers."""

    facts: Callable[[], Iterator[Fact]]
    answers: str


RELATIONS: Registry[FactRelation] = Registry("relation")


def _relation(
    name: str, answers: str
) -> Callable[[Callable[[], Iterator[Fact]]], Callable[[], Iterator[Fact]]]:
    def enter(facts: Callable[[], Iterator[Fact]]) -> Callable[[], Iterator[Fact]]:
        RELATIONS.add(name, FactRelation(facts, answers))
        return facts

    return enter


def _about(country: Country, question: str, aliases: tuple[str, ...]) -> Fact:
    return Fact(country.code, question, aliases, f"country:{country.code}")


def _states() -> Iterator[Country]:
    return (country for country in countries().values() if country.sovereign)


def _demonyms(country: Country) -> tuple[str, ...]:
    listed = DEMONYMS.get(country.code) or ((country.demonym,) if country.demonym else ())
    return () if any("," in name for name in listed) else listed


def _continent(country: Country) -> str | None:
    if country.continent == "Americas":
        return "South America" if country.code in SOUTH_AMERICA else "North America"
    return country.continent


def _continent_aliases(country: Country, name: str) -> tuple[str, ...]:
    if name != "North America" or country.code in NORTHERN_AMERICA:
        return CONTINENT_ALIASES[name]
    part = "Central America" if country.code in CENTRAL_AMERICA else "Caribbean"
    return (*CONTINENT_ALIASES[name], part)


@_relation("capital", answers="capital")
def capital() -> Iterator[Fact]:
    """Country or territory to capital."""
    for country in countries().values():
        if country.capital:
            question = f"What is the capital of {country.phrase}?"
            yield _about(country, question, country.capital)


@_relation("capital_of", answers="country")
def capital_of() -> Iterator[Fact]:
    """Capital to country."""
    for country in _states():
        if country.capital:
            question = f"{country.capital[0]} is the capital of which country?"
            yield _about(country, question, country.aliases)


@_relation("province_of", answers="country")
def province_of() -> Iterator[Fact]:
    """Province, state, county or region to country."""
    for province in provinces():
        yield _in_country(province, f"In which country is the region of {province.name}?")


@_relation("city_country", answers="country")
def city_country() -> Iterator[Fact]:
    """City to country."""
    for city in cities():
        yield _in_country(city, f"In which country is the city of {city.name}?")


def _in_country(place: Place, question: str) -> Fact:
    key = f"{place.country}/{place.name}"
    nation = distinct((place.part,)) if place.part else ()
    aliases = (*countries()[place.country].aliases, *nation)
    return Fact(key, question, aliases, f"country:{place.country}")


@_relation("airport_city", answers="city")
def airport_city() -> Iterator[Fact]:
    """IATA code to city."""
    for airport in airports()[:AIRPORT_QUESTIONS]:
        question = f"Which city has the airport with the code {airport.code}?"
        yield Fact(airport.code, question, (airport.city,), f"country:{airport.country}")


@_relation("airport_country", answers="country")
def airport_country() -> Iterator[Fact]:
    """IATA code to country."""
    for airport in airports()[:AIRPORT_QUESTIONS]:
        question = f"In which country is the airport with the code {airport.code}?"
        aliases = countries()[airport.country].aliases
        yield Fact(airport.code, question, aliases, f"country:{airport.country}")


@_relation("nationality", answers="nationality")
def nationality() -> Iterator[Fact]:
    """Country to demonym."""
    for country in _states():
        if names := _demonyms(country):
            question = f"What is the nationality of a person from {country.phrase}?"
            yield _about(country, question, _with_plurals(names))


def _with_plurals(names: tuple[str, ...]) -> tuple[str, ...]:
    return distinct(
        (*names, *(f"{name}s" for name in names if not name.endswith(("s", "h", "ese"))))
    )


@_relation("nationality_of", answers="country")
def nationality_of() -> Iterator[Fact]:
    """Demonym to country."""
    for country in _states():
        if names := _demonyms(country):
            question = f"Which country does a person of {names[0]} nationality come from?"
            yield _about(country, question, country.aliases)


@_relation("continent", answers="continent")
def continent() -> Iterator[Fact]:
    """Country to continent."""
    for country in _states():
        if name := _continent(country):
            question = f"On which continent is {country.phrase}?"
            yield _about(country, question, _continent_aliases(country, name))


@_relation("currency", answers="currency")
def currency() -> Iterator[Fact]:
    """Country to the unit of its currency, where one currency only has that unit."""
    for country in _states():
        if units := CURRENCY_UNITS.get(country.currency or ""):
            question = f"What is the currency of {country.phrase}?"
            plurals = tuple(f"{unit}s" for unit in units if not unit.endswith("s"))
            yield _about(country, question, distinct((*units, *plurals)))


@_relation("domain", answers="domain")
def domain() -> Iterator[Fact]:
    """Country to internet domain."""
    for country in _states():
        if country.domain:
            question = f"What is the internet top-level domain of {country.phrase}?"
            yield _about(country, question, (country.domain,))


@_relation("domain_of", answers="country")
def domain_of() -> Iterator[Fact]:
    """Internet domain to country."""
    for country in _states():
        if country.domain:
            question = f"Which country has the internet top-level domain {country.domain}?"
            yield _about(country, question, country.aliases)


@_relation("calling_code", answers="calling code")
def calling_code() -> Iterator[Fact]:
    """Country to calling code."""
    for country in _states():
        if code := country.calling_code:
            question = f"What is the international calling code of {country.phrase}?"
            yield _about(country, question, _dialled(code))


def _dialled(code: str) -> tuple[str, ...]:
    if len(code) == 4:  # North America's plan: 1 and an area code
        return (f"+{code}", f"+1-{code[1:]}", f"+1 {code[1:]}", code[1:])
    return (f"+{code}", f"00{code}")


@_relation("symbol", answers="symbol")
def symbol() -> Iterator[Fact]:
    """Element to symbol."""
    for e in elements():
        question = f"What is the chemical symbol for {e.name}?"
        yield Fact(str(e.number), question, (e.symbol,), f"element:{e.symbol}")


@_relation("element", answers="element")
def element() -> Iterator[Fact]:
    """Symbol to element."""
    for e in elements():
        question = f"Which chemical element has the symbol {e.symbol}?"
        yield Fact(str(e.number), question, _spellings(e.name), f"element:{e.symbol}")


@_relation("atomic_number", answers="atomic number")
def atomic_number() -> Iterator[Fact]:
    """Element to atomic number."""
    for e in elements():
        question = f"What is the atomic number of {e.name}?"
        yield Fact(str(e.number), question, (str(e.number),), f"element:{e.symbol}")


@_relation("atomic_number_of", answers="element")
def atomic_number_of() -> Iterator[Fact]:
    """Atomic number to element."""
    for e in elements():
        question = f"Which chemical element has the atomic number {e.number}?"
        yield Fact(str(e.number), question, _spellings(e.name), f"element:{e.symbol}")


_BRITISH = {"aluminum": "aluminium", "cesium": "caesium", "sulfur": "sulphur"}


def _spellings(name: str) -> tuple[str, ...]:
    return (name, _BRITISH[name]) if name in _BRITISH else (name,)
