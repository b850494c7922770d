"""Spellings that the packages lack: names of countries, capitals, nationalities and currencies."""

# No question asks in which country a place in one of these territories is.
TERRITORIES = frozenset(
    "AI AQ AS AW AX BL BM BQ BV CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO"
    " MP MQ MS NC NF NU PF PM PN PR RE SH SJ SX TC TF TK UM VG VI WF YT".split()
)

# Countries whose name takes "the" in a sentence.
WITH_ARTICLE = frozenset(
    "AE AX BS BQ CC CD CF CG CK CZ DO FK FO GB GM IM KM KY MH MP MV NL PH PN SB SC TC TF US VG"
    " VI".split()
)

# Spellings in countryinfo that are common words or the name of something else.
NOT_NAMES = frozenset(
    "Island|Thai|Lao|Mexicanos|Portuguesa|Togolese|Montenegrin|Mann|Mannin|Prathet|Dominique"
    "|Congo|Republic of China|Guiana|Guyane|Viti|Kingdom of the Netherlands".split("|")
)

COUNTRY_ALIASES: dict[str, tuple[str, ...]] = {
    "AE": ("UAE", "U.A.E.", "Emirates"),
    "AG": ("Antigua", "Antigua & Barbuda"),
    "BA": ("Bosnia", "Bosnia & Herzegovina", "Bosnia-Herzegovina"),
    "BS": ("Bahamas",),
    "CD": ("DRC", "D.R. Congo", "Congo-Kinshasa", "Zaire"),
    "CF": ("CAR", "C.A.R."),
    "CG": ("Congo", "Congo-Brazzaville", "Congo Republic"),
    "CI": ("Cote d'Ivoire", "Côte d'Ivoire"),
    "CN": ("PRC", "P.R. China", "Mainland China"),
    "CV": ("Cabo Verde",),
    "CZ": ("Czechia", "The Czech Republic"),
    "FM": ("Federated States of Micronesia", "FSM"),
    "GB": ("UK", "U.K.", "Britain", "Great Britain"),
    "GM": ("Gambia",),
    "GW": ("Guinea Bissau",),
    "KN": ("St. Kitts", "Saint Kitts", "Saint Kitts & Nevis"),
    "KP": ("DPRK", "D.P.R.K."),
    "KR": ("Korea", "ROK"),
    "KG": ("Kirghizia", "Kirgizstan"),
    "MK": ("Macedonia", "Republic of Macedonia", "FYROM"),
    "MM": ("Burma",),
    "NL": ("Holland", "Netherlands"),
    "PG": ("PNG",),
    "RU": ("Russian Federation",),
    "SA": ("KSA", "Saudi"),
    "SK": ("Slovak Republic",),
    "ST": ("Sao Tome", "São Tomé"),
    "SZ": ("Swaziland",),
    "TL": ("Timor-Leste", "Timor Leste"),
    "TR": ("Türkiye", "Turkiye"),
    "TT": ("Trinidad", "Trinidad & Tobago"),
    "US": ("USA", "US", "U.S.", "U.S.A.", "America", "United States of America"),
    "VA": ("Vatican", "Holy See", "Vatican City State"),
    "VC": ("St. Vincent", "Saint Vincent"),
    "VN": ("Viet Nam",),
}

CAPITAL_ALIASES: dict[str, tuple[str, ...]] = {
    "AE": ("Abu Zaby",),
    "AG": ("St. John's", "Saint Johns", "St Johns"),
    "BJ": ("Porto Novo",),
    "BT": ("Thimbu",),
    "CH": ("Berne",),
    "CN": ("Peking",),
    "GU": ("Agana",),
    "IN": ("Delhi",),
    "KI": ("Tarawa", "Bairiki"),
    "KZ": ("Nur-Sultan", "Nursultan"),
    "LK": ("Kotte", "Sri Jayewardenepura Kotte", "Sri Jayawardenapura Kotte"),
    "MD": ("Kishinev",),
    "MM": ("Nay Pyi Taw", "Naypyitaw"),
    "MN": ("Ulan Bator",),
    "MP": ("Saipan",),
    "PA": ("Panama",),
    "PT": ("Lisboa",),
    "PW": ("Melekeok",),
    "SB": ("Honiara City",),
    "TC": ("Grand Turk",),
    "TD": ("Ndjamena", "N'Djaména"),
    "TM": ("Ashkhabad", "Aşgabat"),
    "TO": ("Nukualofa",),
    "UA": ("Kiev", "Kyiv"),
    "US": ("Washington", "Washington, DC", "Washington DC"),
    "YE": ("Sanaa", "Sana"),
}

# These replace countryinfo's demonym where it is misspelled, a noun, or one of several in use.
DEMONYMS: dict[str, tuple[str, ...]] = {
    "AF": ("Afghan", "Afghani"),
    "AR": ("Argentine", "Argentinian", "Argentinean"),
    "AZ": ("Azerbaijani", "Azeri"),
    "BA": ("Bosnian", "Herzegovinian", "Bosnian and Herzegovinian"),
    "BB": ("Barbadian", "Bajan"),
    "BD": ("Bangladeshi", "Bengali"),
    "BF": ("Burkinabe", "Burkinabè", "Burkinese"),
    "BW": ("Botswanan", "Motswana", "Batswana"),
    "CV": ("Cape Verdean", "Cabo Verdean"),
    "DK": ("Danish", "Dane", "Danes"),
    "DJ": ("Djiboutian",),
    "EC": ("Ecuadorian", "Ecuadorean"),
    "ES": ("Spanish", "Spaniard"),
    "FI": ("Finnish", "Finn", "Finns"),
    "FR": ("French", "Frenchman"),
    "GB": ("British", "Briton", "English"),
    "GW": ("Bissau-Guinean", "Guinea-Bissauan"),
    "ID": ("Indonesian",),
    "IE": ("Irish", "Irishman"),
    "IS": ("Icelandic", "Icelander"),
    "KG": ("Kyrgyz", "Kyrgyzstani", "Kirghiz"),
    "KM": ("Comorian", "Comoran"),
    "KN": ("Kittitian", "Nevisian", "Kittitian and Nevisian"),
    "KZ": ("Kazakh", "Kazakhstani"),
    "LA": ("Laotian", "Lao"),
    "LI": ("Liechtensteiner",),
    "LS": ("Basotho", "Mosotho"),
    "LU": ("Luxembourgish", "Luxembourger"),
    "MC": ("Monegasque", "Monacan"),
    "MG": ("Malagasy", "Madagascan"),
    "MM": ("Burmese", "Myanmarese"),
    "MV": ("Maldivian", "Maldivan"),
    "NL": ("Dutch", "Dutchman"),
    "NP": ("Nepalese", "Nepali"),
    "NZ": ("New Zealander", "Kiwi"),
    "PH": ("Filipino", "Filipina", "Philippine"),
    "PL": ("Polish", "Pole", "Poles"),
    "RS": ("Serbian", "Serb", "Serbs"),
    "SA": ("Saudi", "Saudi Arabian"),
    "SC": ("Seychellois",),
    "SE": ("Swedish", "Swede", "Swedes"),
    "SI": ("Slovenian", "Slovene"),
    "SK": ("Slovak", "Slovakian"),
    "SM": ("Sammarinese", "San Marinese"),
    "SR": ("Surinamese", "Surinamer"),
    "ST": ("São Toméan", "Santomean", "Sao Tomean"),
    "SV": ("Salvadoran", "Salvadorian", "Salvadorean"),
    "SZ": ("Swazi", "Liswati", "Emaswati"),
    "TH": ("Thai",),
    "TJ": ("Tajik", "Tajikistani", "Tadzhik"),
    "TM": ("Turkmen", "Turkmenistani"),
    "TR": ("Turkish", "Turk", "Turks"),
    "TT": ("Trinidadian", "Tobagonian", "Trinbagonian"),
    "UZ": ("Uzbek", "Uzbekistani"),
    "VC": ("Vincentian", "Saint Vincentian"),
}

NORTHERN_AMERICA = frozenset("CA MX US".split())
CENTRAL_AMERICA = frozenset("BZ CR GT HN NI PA SV".split())
SOUTH_AMERICA = frozenset("AR BO BR CL CO EC GY PE PY SR UY VE".split())

CONTINENT_ALIASES: dict[str, tuple[str, ...]] = {
    "Oceania": ("Oceania", "Australasia", "Australia and Oceania"),
    "North America": ("North America", "North American"),
    "South America": ("South America", "South American", "Latin America"),
    "Europe": ("Europe", "European"),
    "Asia": ("Asia", "Asian"),
    "Africa": ("Africa", "African"),
    "Antarctica": ("Antarctica",),
}

# Units that belong to a single currency, and the euro; "peso" or "dollar" alone is ambiguous.
CURRENCY_UNITS: dict[str, tuple[str, ...]] = {
    code: tuple(units.split(","))
    for code, units in (
        line.split(" ", 1)
        for line in """\
AFN afghani
ALL lek
AMD dram
AOA kwanza
BDT taka
BWP pula
CNY yuan,renminbi,RMB
CRC colón,colon
CZK koruna,crown
ERN nakfa
ETB birr
EUR euro,euros
GEL lari
GHS cedi
GMD dalasi
GTQ quetzal
HNL lempira
HUF forint
IDR rupiah
ILS shekel,sheqel,new shekel
JPY yen
KHR riel
KZT tenge
LAK kip
MGA ariary
MKD denar
MMK kyat
MNT tugrik,tögrög,togrog
MRU ouguiya
MVR rufiyaa
MYR ringgit
MZN metical
NGN naira
NIO córdoba,cordoba
PEN sol,nuevo sol
PGK kina
PLN złoty,zloty
PYG guaraní,guarani
SLE leone
STN dobra
SZL lilangeni,emalangeni
THB baht
TJS somoni
TOP paʻanga,paanga,pa'anga
UAH hryvnia,hryvnya
VES bolívar,bolivar
VND đồng,dong
VUV vatu
WST tala,tālā
ZAR rand""".splitlines()
    )
}
