"""The relations of the scenario `facts`: each is a function that turns records into facts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.judges.text import normalise
from harness.scenarios.facts.names import (
    CENTRAL_AMERICA,
    CONTINENT_ALIASES,
    CURRENCY_UNITS,
    DEMONYMS,
    NORTHERN_AMERICA,
    SOUTH_AMERICA,
)
from harness.scenarios.facts.records import (
    Country,
    Place,
    airports,
    cities,
    countries,
    distinct,
    elements,
    provinces,
)
from harness.scenarios.short_answers import Fact

AIRPORT_QUESTIONS = 150  # per relation; small models know very few IATA codes


@dataclass(frozen=True, slots=True)
class FactRelation:
    """The function that yields a relation's facts, and the type of their answers."""

    facts: Callable[[], Iterator[Fact]]
    answers: str


def _about(country: Country, question: str, aliases: tuple[str, ...]) -> Fact:
    return Fact(country.code, question, aliases, f"country:{country.code}")


def _states() -> Iterator[Country]:
    return (country for country in countries().values() if country.sovereign)


def _demonyms(country: Country) -> tuple[str, ...]:
    listed = DEMONYMS.get(country.code) or ((country.demonym,) if country.demonym else ())
    return () if any("," in name for name in listed) else listed


def _continent_of(country: Country) -> str | None:
    if country.continent == "Americas":
        return "South America" if country.code in SOUTH_AMERICA else "North America"
    return country.continent


def _continent_aliases(country: Country, name: str) -> tuple[str, ...]:
    if name != "North America" or country.code in NORTHERN_AMERICA:
        return CONTINENT_ALIASES[name]
    part = "Central America" if country.code in CENTRAL_AMERICA else "Caribbean"
    return (*CONTINENT_ALIASES[name], part)


def _capital() -> Iterator[Fact]:
    """Country or territory to capital."""
    for country in countries().values():
        if country.capital:
            question = f"What is the capital of {country.phrase}?"
            yield _about(country, question, country.capital)


def _capital_of() -> Iterator[Fact]:
    """Capital to country."""
    for country in _states():
        if country.capital:
            question = f"{country.capital[0]} is the capital of which country?"
            yield _about(country, question, country.aliases)


def _province_of() -> Iterator[Fact]:
    """Province, state, county or region to country."""
    for province in provinces():
        yield _in_country(province, f"In which country is the region of {province.name}?")


def _city_country() -> Iterator[Fact]:
    """City to country."""
    for city in cities():
        yield _in_country(city, f"In which country is the city of {city.name}?")


def _in_country(place: Place, question: str) -> Fact:
    key = f"{place.country}/{place.name}"
    nation = distinct((place.part,)) if place.part else ()
    aliases = (*countries()[place.country].aliases, *nation)
    return Fact(key, question, aliases, f"place:{normalise(place.name)}")


def _airport_city() -> Iterator[Fact]:
    """IATA code to city."""
    for airport in airports()[:AIRPORT_QUESTIONS]:
        question = f"Which city has the airport with the code {airport.code}?"
        yield Fact(airport.code, question, (airport.city,), f"airport:{airport.code}")


def _airport_country() -> Iterator[Fact]:
    """IATA code to country."""
    for airport in airports()[:AIRPORT_QUESTIONS]:
        question = f"In which country is the airport with the code {airport.code}?"
        aliases = countries()[airport.country].aliases
        yield Fact(airport.code, question, aliases, f"airport:{airport.code}")


def _nationality() -> Iterator[Fact]:
    """Country to demonym."""
    for country in _states():
        if names := _demonyms(country):
            question = f"What is the nationality of a person from {country.phrase}?"
            yield _about(country, question, _with_plurals(names))


def _with_plurals(names: tuple[str, ...]) -> tuple[str, ...]:
    return distinct(
        (*names, *(f"{name}s" for name in names if not name.endswith(("s", "h", "ese"))))
    )


def _nationality_of() -> Iterator[Fact]:
    """Demonym to country."""
    for country in _states():
        if names := _demonyms(country):
            question = f"Which country does a person of {names[0]} nationality come from?"
            yield _about(country, question, country.aliases)


def _continent() -> Iterator[Fact]:
    """Country to continent."""
    for country in _states():
        if name := _continent_of(country):
            question = f"On which continent is {country.phrase}?"
            yield _about(country, question, _continent_aliases(country, name))


def _currency() -> Iterator[Fact]:
    """Country to the unit of its currency, if no other currency has that unit."""
    for country in _states():
        if units := CURRENCY_UNITS.get(country.currency or ""):
            question = f"What is the currency of {country.phrase}?"
            plurals = tuple(f"{unit}s" for unit in units if not unit.endswith("s"))
            yield _about(country, question, distinct((*units, *plurals)))


def _domain() -> Iterator[Fact]:
    """Country to internet domain."""
    for country in _states():
        if country.domain:
            question = f"What is the internet top-level domain of {country.phrase}?"
            yield _about(country, question, (country.domain,))


def _domain_of() -> Iterator[Fact]:
    """Internet domain to country."""
    for country in _states():
        if country.domain:
            question = f"Which country has the internet top-level domain {country.domain}?"
            yield _about(country, question, country.aliases)


def _calling_code() -> Iterator[Fact]:
    """Country to calling code."""
    for country in _states():
        if code := country.calling_code:
            question = f"What is the international calling code of {country.phrase}?"
            yield _about(country, question, _dialled(code))


def _dialled(code: str) -> tuple[str, ...]:
    if len(code) == 4:  # North American Numbering Plan: 1 and an area code
        return (f"+{code}", f"+1-{code[1:]}", f"+1 {code[1:]}", code[1:])
    return (f"+{code}", f"00{code}")


def _symbol() -> Iterator[Fact]:
    """Element to symbol."""
    for e in elements():
        question = f"What is the chemical symbol for {e.name}?"
        yield Fact(str(e.number), question, (e.symbol,), f"element:{e.symbol}")


def _element() -> Iterator[Fact]:
    """Symbol to element."""
    for e in elements():
        question = f"Which chemical element has the symbol {e.symbol}?"
        yield Fact(str(e.number), question, _spellings(e.name), f"element:{e.symbol}")


def _atomic_number() -> Iterator[Fact]:
    """Element to atomic number."""
    for e in elements():
        question = f"What is the atomic number of {e.name}?"
        yield Fact(str(e.number), question, (str(e.number),), f"element:{e.symbol}")


def _atomic_number_of() -> Iterator[Fact]:
    """Atomic number to element."""
    for e in elements():
        question = f"Which chemical element has the atomic number {e.number}?"
        yield Fact(str(e.number), question, _spellings(e.name), f"element:{e.symbol}")


_BRITISH = {"aluminum": "aluminium", "cesium": "caesium", "sulfur": "sulphur"}


def _spellings(name: str) -> tuple[str, ...]:
    return (name, _BRITISH[name]) if name in _BRITISH else (name,)


# The order of this table is part of the order of the questions.
RELATIONS: dict[str, FactRelation] = {
    "capital": FactRelation(_capital, answers="capital"),
    "capital_of": FactRelation(_capital_of, answers="country"),
    "province_of": FactRelation(_province_of, answers="country"),
    "city_country": FactRelation(_city_country, answers="country"),
    "airport_city": FactRelation(_airport_city, answers="city"),
    "airport_country": FactRelation(_airport_country, answers="country"),
    "nationality": FactRelation(_nationality, answers="nationality"),
    "nationality_of": FactRelation(_nationality_of, answers="country"),
    "continent": FactRelation(_continent, answers="continent"),
    "currency": FactRelation(_currency, answers="currency"),
    "domain": FactRelation(_domain, answers="domain"),
    "domain_of": FactRelation(_domain_of, answers="country"),
    "calling_code": FactRelation(_calling_code, answers="calling code"),
    "symbol": FactRelation(_symbol, answers="symbol"),
    "element": FactRelation(_element, answers="element"),
    "atomic_number": FactRelation(_atomic_number, answers="atomic number"),
    "atomic_number_of": FactRelation(_atomic_number_of, answers="element"),
}
