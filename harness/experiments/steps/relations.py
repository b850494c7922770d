"""The relations of two-hop questions: a phrase for each, and the kinds of its subject and answer.

A phrase names the answer: "the capital of {}" is the answer of `facts.capital` about {}. It is used
in the composed question, with another phrase in place of {}, and in the steps of the answer, with a
name. Two relations chain only if the kind of the first one's answers is the kind of the second
one's subjects, because equal names of different kinds are different things: Georgia, the country
and the US state.
"""

from typing import NamedTuple


class HopRelation(NamedTuple):
    """One relation of a question set, as a hop."""

    phrase: str  # names the answer; {} stands for the subject
    subject: str  # kind of the subjects
    answer: str  # kind of the answers


_FIRST = "-"  # kind of subjects that are no answer of another relation


def _of(phrase: str, answer: str, subject: str = _FIRST) -> HopRelation:
    return HopRelation(phrase, subject, answer)


RELATIONS: dict[str, HopRelation] = {
    # music and the arts
    "classical_work_composer": _of("the composer of {}", "composer"),
    "opera_composer": _of("the composer of the opera {}", "composer"),
    "musical_composer": _of("the composer of the musical {}", "composer"),
    "composer_country": _of("the home country of {}", "country", "composer"),
    "song_artist": _of('the band or singer of the song "{}"', "band"),
    "musician_band": _of("the band of {}", "band"),
    "band_country": _of("the home country of {}", "country", "band"),
    "musician_instrument": _of("the instrument of {}", "instrument"),
    "instrument_family": _of("the instrument family of {}", "instrument family", "instrument"),
    "painting_painter": _of("the painter of {}", "artist"),
    "sculpture_sculptor": _of("the sculptor of {}", "artist"),
    "painter_movement": _of("the art movement of {}", "art movement", "artist"),
    "painter_country": _of("the home country of {}", "country", "artist"),
    "film_of_character": _of("the film with the character {}", "film"),
    "film_director": _of("the director of {}", "film director", "film"),
    "director_country": _of("the home country of {}", "country", "film director"),
    # literature and thought
    "character_work": _of("the literary work with the character {}", "literary work"),
    "novel_author": _of("the author of {}", "writer", "literary work"),
    "play_author": _of("the author of {}", "writer", "literary work"),
    "poem_author": _of("the author of the poem {}", "writer"),
    "short_story_author": _of("the author of the story {}", "writer"),
    "children_book_author": _of("the author of {}", "writer", "literary work"),
    "character_creator": _of("the creator of the character {}", "writer"),
    "writer_nationality": _of("the home country of {}", "country", "writer"),
    "writer_language": _of("the language of {}", "language", "writer"),
    "philosophy_book_author": _of("the author of {}", "thinker"),
    "philosopher_nationality": _of("the home country of {}", "country", "thinker"),
    # science and technology
    "theory_scientist": _of("the scientist known for {}", "scientist"),
    "science_book_author": _of("the author of {}", "scientist"),
    "discovery_discoverer": _of("the discoverer of {}", "scientist"),
    "invention_inventor": _of("the inventor of {}", "scientist"),
    "scientist_field": _of("the field of {}", "field", "scientist"),
    "scientist_country": _of("the home country of {}", "country", "scientist"),
    "ore_metal": _of("the metal of the ore {}", "element"),
    "alloy_metal": _of("the main metal of {}", "element"),
    "atomic_number_of": _of("the element with the atomic number {}", "element"),
    "symbol": _of("the chemical symbol of {}", "symbol", "element"),
    "atomic_number": _of("the atomic number of {}", "atomic number", "element"),
    "element_family": _of("the element family of {}", "element family", "element"),
    "formula_quantity": _of("the physical quantity that equals {}", "quantity"),
    "device_measures": _of("the quantity that {} measures", "quantity"),
    "quantity_si_unit": _of("the SI unit of {}", "SI unit", "quantity"),
    "star_constellation": _of("the constellation of {}", "constellation"),
    "constellation_meaning": _of("the figure of {}", "figure", "constellation"),
    "disease_organ": _of("the organ affected by {}", "organ"),
    "organ_system": _of("the organ system of {}", "organ system", "organ"),
    "product_company": _of("the company behind {}", "company"),
    "software_developer": _of("the developer of {}", "company"),
    "video_game_developer": _of("the developer of the video game {}", "company"),
    "company_founder": _of("the founder of {}", "founder", "company"),
    "company_country": _of("the home country of {}", "country", "company"),
    "company_industry": _of("the main business of {}", "business", "company"),
    "car_model_maker": _of("the maker of the car model {}", "car maker"),
    "car_make_country": _of("the home country of {}", "country", "car maker"),
    # places
    "landmark_city": _of("the city of {}", "city"),
    "painting_city": _of("the city of {}", "city"),
    "stadium_city": _of("the city of {}", "city"),
    "soccer_club_city": _of("the city of the soccer club {}", "city"),
    "work_setting_city": _of("the city in which {} is set", "city"),
    "team_city": _of("the home city of the team {}", "US city"),
    "empire_capital": _of("the capital of {}", "city", "empire"),
    "city_river": _of("the river of {}", "river", "city"),
    "river_mouth": _of("the sea at the mouth of {}", "sea", "river"),
    "us_city_state": _of("the US state of {}", "US state", "US city"),
    "us_landmark_state": _of("the US state of {}", "US state"),
    "university_us_state": _of("the US state of {}", "US state"),
    "us_nickname_state": _of("the US state nicknamed the {}", "US state"),
    "us_state_capital": _of("the capital of {}", "state capital", "US state"),
    "landmark_country": _of("the country of {}", "country"),
    "mountain_country": _of("the country of {}", "country"),
    "island_country": _of("the country of {}", "country"),
    "battle_country": _of("the country of {}", "country"),
    "dish_country": _of("the home country of the dish {}", "country"),
    "cheese_country": _of("the home country of {}", "country"),
    "newspaper_country": _of("the home country of the newspaper {}", "country"),
    "airline_country": _of("the home country of the airline {}", "country"),
    "athlete_country": _of("the home country of {}", "country"),
    "explorer_country": _of("the home country of the explorer {}", "country"),
    "leader_country": _of("the country led by {}", "country"),
    "province_of": _of("the country of the region of {}", "country"),
    "domain_of": _of("the country with the internet domain {}", "country"),
    "capital": _of("the capital of {}", "capital", "country"),
    # history
    "us_president_deed": _of("the US president who {}", "US president"),
    "first_lady_husband": _of("the husband of {}", "US president"),
    "us_president_after": _of("the US president after {}", "next president", "US president"),
}
