"""Corrections of the packages' data where they are stale, wrong or contested, each with a reason.

A correction with a value replaces the entry; one without a value removes it. Every entry of
countryinfo 1.0.1 (capitals, currencies, demonyms, calling codes, regions) was checked by hand.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Correction:
    """Replaces or removes `field` of the country with ISO code `key`, or of the entry so named."""

    field: str
    key: str
    value: str | None
    reason: str


def _remove(field: str, keys: str, reason: str) -> tuple[Correction, ...]:
    return tuple(Correction(field, key, None, reason) for key in keys.split("|"))


CORRECTIONS: tuple[Correction, ...] = (
    # entries of countryinfo, by their name there
    *_remove("entry", "Myanmar", "second entry for MM, without the provinces of Burma's"),
    *_remove("entry", "Holy See (Vatican City State)", "second entry for VA"),
    *_remove("entry", "Palestine, State of", "second entry for PS"),
    *_remove("entry", "Antilles néerlandaises", "dissolved in 2010; shares Willemstad with CW"),
    *_remove("entry", "Serbia and Montenegro", "dissolved in 2006"),
    *_remove("entry", "Scotland|Wales", "parts of GB, without an ISO code of their own"),
    # names
    Correction("name", "MM", "Myanmar", "renamed in 1989"),
    Correction("name", "MK", "North Macedonia", "renamed in 2019"),
    Correction("name", "SZ", "Eswatini", "renamed in 2018"),
    Correction("name", "VA", "Vatican City", "the short name"),
    Correction("name", "FM", "Micronesia", "the short name"),
    Correction("name", "VG", "British Virgin Islands", "the entry has an inverted catalogue name"),
    Correction("name", "VI", "United States Virgin Islands", "inverted catalogue name"),
    Correction("name", "MF", "Saint Martin", "the short name"),
    Correction("name", "SX", "Sint Maarten", "the short name"),
    # capitals
    Correction("capital", "BI", "Gitega", "moved from Bujumbura in 2019"),
    Correction("capital", "KZ", "Astana", "Nur-Sultan was renamed back in 2022"),
    Correction("capital", "SM", "San Marino", "the entry writes City of San Marino"),
    Correction("capital", "SZ", "Mbabane", "Lobamba is the seat of the king and parliament only"),
    Correction("capital", "LK", "Sri Jayawardenepura Kotte", "Colombo is the commercial capital"),
    Correction("capital", "MP", "Capitol Hill", "Saipan is the island, not the town"),
    *_remove("capital", "IL|PS|EH", "contested"),
    *_remove("capital", "BO|ZA", "several seats, each called the capital"),
    *_remove("capital", "GQ", "moved to Ciudad de la Paz by decree in 2026; sources disagree"),
    *_remove("capital", "NR|TK", "no official capital"),
    *_remove("capital", "MS", "Plymouth was buried by a volcano; government sits elsewhere"),
    *_remove("capital", "HK|MO|IO|SJ|TF|GS", "no capital: a city, or a base or station"),
    *_remove("capital", "BQ", "three islands, three towns in one entry"),
    *_remove("capital", "VA", "a city state; the entry is a list"),
    # currencies; CURRENCY_UNITS has their units
    Correction("currency", "BY", "BYN", "BYR was replaced in 2016"),
    Correction("currency", "MR", "MRU", "MRO was replaced in 2018"),
    Correction("currency", "ST", "STN", "STD was replaced in 2018"),
    Correction("currency", "VE", "VES", "VEF was replaced in 2018"),
    Correction("currency", "ZM", "ZMW", "ZMK was replaced in 2013"),
    Correction("currency", "SL", "SLE", "SLL was replaced in 2022"),
    Correction("currency", "HR", "EUR", "the euro replaced HRK in 2023"),
    Correction("currency", "BG", "EUR", "the euro replaced BGN in 2026"),
    Correction("currency", "SV", "USD", "SVC has not been issued since 2001"),
    Correction("currency", "CU", "CUP", "CUC was abolished in 2021"),
    Correction("currency", "CL", "CLP", "CLF is a unit of account"),
    Correction("currency", "UY", "UYU", "UYI is a unit of account"),
    Correction("currency", "BO", "BOB", "BOV is a unit of account"),
    Correction("currency", "CH", "CHF", "CHE and CHW are units of account"),
    Correction("currency", "US", "USD", "USN and USS are units of account"),
    *_remove("currency", "ZW", "the dollar and ZiG are both in use since 2024"),
    *_remove("currency", "BT|HT|LS|NA|PA|EH", "several currencies are legal tender"),
    # calling codes
    Correction("calling_code", "KZ", "7", "76 and 77 are ranges within +7"),
    *_remove("calling_code", "VA", "+379 is reserved, calls go through Italy"),
    *_remove("calling_code", "DO|JM", "several codes"),
    # continents
    *_remove("continent", "RU|TR|EG|KZ|AZ|GE|AM|CY|ID|TL|AQ", "on or between two continents"),
    # provinces: the complete list of a country, by ISO code
    *_remove("provinces", "CD|CG", "each lists the provinces of the other"),
    *_remove("provinces", "SS", "lists Spain's communities"),
    *_remove("provinces", "SD", "also lists the states of South Sudan"),
    *_remove("provinces", "AO", "also lists the parishes of Andorra"),
    *_remove("provinces", "PS", "contested"),
    *_remove("provinces", "ZW", "names run together"),
    # places, by their name
    *_remove("place", "Kosovo|Kosovo-Pomoravlje|Kosovska Mitrovica|Peć|Prizren", "in Kosovo"),
    *_remove("place", "Laayoune|Dakhla|Smara|Es Semara", "in Western Sahara"),
    *_remove("place", "Avtonomna Respublika Krym|Sevastopol'|Sevastopol|Simferopol", "in Crimea"),
    *_remove("place", "Donets'ka|Luhans'ka|Donetsk|Luhansk|Mariupol|Khersons'ka", "at war"),
    *_remove("place", "Abkhazia or Ap'khazet'is Avtonomiuri Respublika|Sukhumi", "contested"),
    *_remove("place", "Jammu and Kashmir|Srinagar|Jammu|Leh|Gilgit|Skardu|Chitral", "contested"),
    *_remove("place", "Jerusalem|Gaza|Xankandi Sahari|Stepanakert|Golan", "contested"),
    *_remove("place", "Antartica e Islas del Atlantico Sur|Kyrenia|Lefkosa|Ercan", "contested"),
    *_remove("place", "Neringa Pakruojo Rajonas|Davao City Davao", "two names run together"),
    *_remove(
        "place", "Dependencias Federales|National Capital|Man|Bruce|Cook|Grey", "not distinctive"
    ),
    *_remove("place", "Kerch|Berdiansk|Kramatorsk|Sievierodonetsk", "at war"),
    *_remove("place", "Muzaffarabad|Rawalakot|Chilas|Mirpur", "in Kashmir"),
    *_remove("place", "Oban|Scarborough|Margate|Nelson|Cartagena|Linares|Mercedes", "not unique"),
    *_remove(
        "place", "Charlestown|Windsor Locks|Stratford|Jura|Goris|Cambridge|Boston", "not unique"
    ),
    *_remove("place", "Burlington|Hinton|Picton|Livingstone|Kimberley|Christ Church", "not unique"),
    *_remove("place", "Belgrad|Naqpur|Bluefileds|Enegu|Mkeik|Inhambabe|Twitzel", "misspelled"),
    *_remove("place", "Bloemfontain|Quy Nohn|Aima Ata|Nawabash|Sihanukville|Araak", "misspelled"),
    *_remove(
        "place", "Jerez de la Forntera|Ushuahia|Courcheval|Goronka|Bahia Inutil", "misspelled"
    ),
    *_remove("place", "Naples|Florence|Venice|Milan|Turin|Genoa|Syracuse", "also cities in Italy"),
    *_remove("place", "Seville|Lisbon|Cologne|Munich|Nuremberg|Dunkirk|Marseilles", "also abroad"),
    *_remove(
        "place", "Sparta|Corinth|Odessa|Cracow|Petersburg|St Petersburg|Smyrna", "also abroad"
    ),
    *_remove("place", "Bethlehem|Nazareth|Lebanon|Peru|Cuba|Palestine|Carthage", "also abroad"),
)

# A name that has only these words ("Upper River", "Northern Islands") identifies no country.
GENERIC = frozenset(
    "north south east west northern southern eastern western central centre centro norte sur nord"
    " sud est ouest upper lower middle grand river rivers bank coast bay lake sea sandy high rock"
    " point port sound harbour mountain highland highlands hills valley rift plateau plateaux"
    " delta littoral litoral maritime golden black green long cat free new old region area"
    " province state district capital national island islands territory forest vale gulf line"
    " rural collines creek cross fresh big".split()
)

# Airports with these words in their name serve a facility or an island, not a city.
NO_CITY = re.compile(
    r"\b(island|islands|isla|ile|iles|atoll|islet|lodge|park|mission|station|mine|lake|lakes|base"
    r"|naval|airport|district|administrative|camp|falls|national|pass|military|resort|creek|AB)\b",
    re.IGNORECASE,
)


_BY_FIELD = {(correction.field, correction.key): correction for correction in CORRECTIONS}


def corrected(field: str, key: str, value: str | None) -> str | None:
    """Return the corrected value: None if it is removed, `value` if there is no correction."""
    correction = _BY_FIELD.get((field, key))
    return value if correction is None else correction.value


def is_kept(field: str, key: str) -> bool:
    """Return whether no correction removes this entry."""
    correction = _BY_FIELD.get((field, key))
    return correction is None or correction.value is not None


def is_distinctive(name: str) -> bool:
    """Return whether a normalised place name has a word that is not generic."""
    return not GENERIC.issuperset(name.split())
