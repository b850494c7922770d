"""Where the packages' data are stale, wrong or contested: one table, every line with its reason.

A rule with a value replaces the entry, a rule without one drops it. Checked by hand, entry by
entry, against countryinfo 1.0.1 (all capitals, currencies, demonyms, calling codes, regions).
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NameRule:
    """For `field` of the country with the ISO code `key` (or of the entry with that name)."""

    field: str
    key: str
    value: str | None
    reason: str


def _drop(field: str, keys: str, reason: str) -> tuple[NameRule, ...]:
    return tuple(NameRule(field, key, None, reason) for key in keys.split("|"))


def _replace(field: str, values: dict[str, str], reason: str) -> tuple[NameRule, ...]:
    return tuple(NameRule(field, key, value, reason) for key, value in values.items())


RULES: tuple[NameRule, ...] = (
    # entries of countryinfo, by their name there
    *_drop("entry", "Myanmar", "second entry for MM, without the provinces of Burma's"),
    *_drop("entry", "Holy See (Vatican City State)", "second entry for VA"),
    *_drop("entry", "Palestine, State of", "second entry for PS"),
    *_drop("entry", "Antilles néerlandaises", "dissolved in 2010; shares Willemstad with CW"),
    *_drop("entry", "Serbia and Montenegro", "dissolved in 2006"),
    *_drop("entry", "Scotland|Wales", "parts of GB, without an ISO code of their own"),
    # names
    NameRule("name", "MM", "Myanmar", "renamed in 1989"),
    NameRule("name", "MK", "North Macedonia", "renamed in 2019"),
    NameRule("name", "SZ", "Eswatini", "renamed in 2018"),
    NameRule("name", "VA", "Vatican City", "the short name"),
    NameRule("name", "FM", "Micronesia", "the short name"),
    NameRule("name", "VG", "British Virgin Islands", "the entry's name is a catalogue's inversion"),
    NameRule("name", "VI", "United States Virgin Islands", "a catalogue's inversion"),
    NameRule("name", "MF", "Saint Martin", "the short name"),
    NameRule("name", "SX", "Sint Maarten", "the short name"),
    # capitals
    NameRule("capital", "BI", "Gitega", "moved from Bujumbura in 2019"),
    NameRule("capital", "KZ", "Astana", "Nur-Sultan was renamed back in 2022"),
    NameRule("capital", "SM", "San Marino", "the entry writes City of San Marino"),
    NameRule("capital", "SZ", "Mbabane", "Lobamba is the seat of the king and parliament only"),
    NameRule("capital", "LK", "Sri Jayawardenepura Kotte", "Colombo is the commercial capital"),
    NameRule("capital", "MP", "Capitol Hill", "Saipan is the island, not the town"),
    *_drop("capital", "IL|PS|EH", "contested"),
    *_drop("capital", "BO|ZA", "several seats, each called the capital"),
    *_drop("capital", "GQ", "moved to Ciudad de la Paz by decree in 2026; sources disagree"),
    *_drop("capital", "NR|TK", "no official capital"),
    *_drop("capital", "MS", "Plymouth was buried by a volcano; government sits elsewhere"),
    *_drop("capital", "HK|MO|IO|SJ|TF|GS", "no capital: a city, or a base or station"),
    *_drop("capital", "BQ", "three islands, three towns in one entry"),
    *_drop("capital", "VA", "a city state; the entry is a list"),
    # currencies, by the unit that CURRENCY_UNITS names
    NameRule("currency", "BY", "BYN", "BYR was replaced in 2016"),
    NameRule("currency", "MR", "MRU", "MRO was replaced in 2018"),
    NameRule("currency", "ST", "STN", "STD was replaced in 2018"),
    NameRule("currency", "VE", "VES", "VEF was replaced in 2018"),
    NameRule("currency", "ZM", "ZMW", "ZMK was replaced in 2013"),
    NameRule("currency", "SL", "SLE", "SLL was replaced in 2022"),
    NameRule("currency", "HR", "EUR", "the euro replaced HRK in 2023"),
    NameRule("currency", "BG", "EUR", "the euro replaced BGN in 2026"),
    NameRule("currency", "SV", "USD", "SVC has not been issued since 2001"),
    NameRule("currency", "CU", "CUP", "CUC was abolished in 2021"),
    NameRule("currency", "CL", "CLP", "CLF is a unit of account"),
    NameRule("currency", "UY", "UYU", "UYI is a unit of account"),
    NameRule("currency", "BO", "BOB", "BOV is a unit of account"),
    NameRule("currency", "CH", "CHF", "CHE and CHW are units of account"),
    NameRule("currency", "US", "USD", "USN and USS are units of account"),
    *_drop("currency", "ZW", "the dollar and ZiG side by side since 2024"),
    *_drop("currency", "BT|HT|LS|NA|PA|EH", "several currencies are legal tender"),
    # calling codes
    NameRule("calling_code", "KZ", "7", "76 and 77 are ranges within +7"),
    *_drop("calling_code", "VA", "+379 is reserved, calls go through Italy"),
    *_drop("calling_code", "DO|JM", "several codes"),
    # continents
    *_drop("continent", "RU|TR|EG|KZ|AZ|GE|AM|CY|ID|TL|AQ", "on or between two continents"),
    # provinces: whole lists, by ISO code
    *_drop("provinces", "CD|CG", "each holds the provinces of the other"),
    *_drop("provinces", "SS", "holds Spain's communities"),
    *_drop("provinces", "SD", "holds the states of South Sudan too"),
    *_drop("provinces", "AO", "holds the parishes of Andorra too"),
    *_drop("provinces", "PS", "contested"),
    *_drop("provinces", "ZW", "names run into each other"),
    # places, by their name
    *_drop("place", "Kosovo|Kosovo-Pomoravlje|Kosovska Mitrovica|Peć|Prizren", "in Kosovo"),
    *_drop("place", "Laayoune|Dakhla|Smara|Es Semara", "in Western Sahara"),
    *_drop("place", "Avtonomna Respublika Krym|Sevastopol'|Sevastopol|Simferopol", "in Crimea"),
    *_drop("place", "Donets'ka|Luhans'ka|Donetsk|Luhansk|Mariupol|Khersons'ka", "at war"),
    *_drop("place", "Abkhazia or Ap'khazet'is Avtonomiuri Respublika|Sukhumi", "contested"),
    *_drop("place", "Jammu and Kashmir|Srinagar|Jammu|Leh|Gilgit|Skardu|Chitral", "contested"),
    *_drop("place", "Jerusalem|Gaza|Xankandi Sahari|Stepanakert|Golan", "contested"),
    *_drop("place", "Antartica e Islas del Atlantico Sur|Kyrenia|Lefkosa|Ercan", "contested"),
    *_drop("place", "Neringa Pakruojo Rajonas|Davao City Davao", "two names run together"),
    *_drop("place", "Dependencias Federales|National Capital|Man|Bruce|Cook|Grey", "says nothing"),
    *_drop("place", "Kerch|Berdiansk|Kramatorsk|Sievierodonetsk", "at war"),
    *_drop("place", "Muzaffarabad|Rawalakot|Chilas|Mirpur", "in Kashmir"),
    *_drop("place", "Oban|Scarborough|Margate|Nelson|Cartagena|Linares|Mercedes", "namesakes"),
    *_drop("place", "Charlestown|Windsor Locks|Stratford|Jura|Goris|Cambridge|Boston", "namesakes"),
    *_drop("place", "Burlington|Hinton|Picton|Livingstone|Kimberley|Christ Church", "namesakes"),
    *_drop("place", "Belgrad|Naqpur|Bluefileds|Enegu|Mkeik|Inhambabe|Twitzel", "misspelled"),
    *_drop("place", "Bloemfontain|Quy Nohn|Aima Ata|Nawabash|Sihanukville|Araak", "misspelled"),
    *_drop("place", "Jerez de la Forntera|Ushuahia|Courcheval|Goronka|Bahia Inutil", "misspelled"),
    *_drop("place", "Naples|Florence|Venice|Milan|Turin|Genoa|Syracuse", "English for Italy's"),
    *_drop("place", "Seville|Lisbon|Cologne|Munich|Nuremberg|Dunkirk|Marseilles", "as above"),
    *_drop("place", "Sparta|Corinth|Odessa|Cracow|Petersburg|St Petersburg|Smyrna", "as above"),
    *_drop("place", "Bethlehem|Nazareth|Lebanon|Peru|Cuba|Palestine|Carthage", "as above"),
)

# A name made of such words only ("Upper River", "Northern Islands") tells no country.
GENERIC = frozenset(
    "north south east west northern southern eastern western central centre centro norte sur nord"
    " sud est ouest upper lower middle grand river rivers bank coast bay lake sea sandy high rock"
    " point port sound harbour mountain highland highlands hills valley rift plateau plateaux"
    " delta littoral litoral maritime golden black green long cat free new old region area"
    " province state district capital national island islands territory forest vale gulf line"
    " rural collines creek cross fresh big".split()
)

# Airports named by these words serve a facility or an island, not a city.
NO_CITY = re.compile(
    r"\b(island|islands|isla|ile|iles|atoll|islet|lodge|park|mission|station|mine|lake|lakes|base"
    r"|naval|airport|district|administrative|camp|falls|national|pass|military|resort|creek|AB)\b",
    re.IGNORECASE,
)


_BY_FIELD = {(rule.field, rule.key): rule for rule in RULES}


def ruled(field: str, key: str, value: str | None) -> str | None:
    """The value that a rule gives instead, None where one drops it, else the value as it is."""
    rule = _BY_FIELD.get((field, key))
    return value if rule is None else rule.value


def kept(field: str, key: str) -> bool:
    """Whether no rule drops this entry."""
    rule = _BY_FIELD.get((field, key))
    return rule is None or rule.value is not None


def is_telling(name: str) -> bool:
    """Whether a normalised place name has a word of its own."""
    return not GENERIC.issuperset(name.split())
