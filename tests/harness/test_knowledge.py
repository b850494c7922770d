"""The scenario `knowledge`: enough questions, one right answer each, and agreement with packages."""

import calendar
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import airportsdata
import pytest

from harness.judges.base import Verdict
from harness.judges.rules import RuleJudge
from harness.judges.text import contains, normalise
from harness.scenarios import load_questions
from harness.scenarios.knowledge.questions import RELATIONS, read_relation, relations
from harness.scenarios.short_answers import contains_its_answer
from hq.errors import HQError

FILES = {file.name.removesuffix(".toml"): read_relation(file) for file in RELATIONS.iterdir()}
QUESTIONS = load_questions("knowledge")
ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "knowledge.md").read_text(encoding="utf-8")


def answers(name):
    """Subject and answer of each fact of a relation."""
    return {fact.key: fact.aliases[0] for fact in relations()[name].facts}


def test_it_has_breadth():
    assert len(QUESTIONS) >= 15_000
    assert len(relations()) >= 200
    assert len({entity for question in QUESTIONS for entity in question.entities}) >= 15_000
    assert f"{len(QUESTIONS):,} short-answer questions in {len(relations())} relations" in DOCUMENT
    scenarios = (ROOT / "docs" / "how-to" / "scenarios.md").read_text(encoding="utf-8")
    assert scenarios.count(f"{len(QUESTIONS):,} questions") == 1


def test_the_order_is_that_of_the_seed_and_ids_and_wordings_are_not():
    other = load_questions("knowledge", seed=1)
    assert [q.id for q in QUESTIONS] != [q.id for q in other]
    assert {q.id: q.question for q in QUESTIONS} == {q.id: q.question for q in other}
    assert [q.id for q in load_questions("knowledge", limit=50)] == [q.id for q in QUESTIONS[:50]]


def test_ids_and_wordings_are_unique():
    for values in ([q.id for q in QUESTIONS], [normalise(q.question) for q in QUESTIONS]):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_a_subject_is_asked_about_once():
    """So that the units of a study are given answers; leave a row out where this test fails."""
    places = defaultdict(list)
    for name, relation in relations().items():
        for fact in relation.facts:
            places[fact.entity].append(name)
    assert {entity: names for entity, names in places.items() if len(names) > 1} == {}


def test_no_question_contains_its_answer():
    found = [fact for r in relations().values() for fact in r.facts if contains_its_answer(fact)]
    assert found == []


@pytest.mark.parametrize("name", FILES)
def test_the_spellings_of_a_relation_are_of_one_answer_each(name):
    file = FILES[name]
    given = {fact.aliases[0] for fact in relations()[name].facts}
    assert set(file.aliases) <= given
    of_spelling = defaultdict(set)
    for answer in given:
        for spelling in (answer, *file.aliases.get(answer, ())):
            of_spelling[normalise(spelling)].add(answer)
    assert {s: of for s, of in of_spelling.items() if len(of) > 1 or not s} == {}


def test_distractors_are_wrong_answers_of_the_same_type():
    of_type = defaultdict(set)
    for relation in relations().values():
        of_type[relation.answers] |= {fact.aliases[0] for fact in relation.facts}
    for question in QUESTIONS:
        right = {normalise(alias) for alias in question.aliases}
        assert set(question.distractors) <= of_type[relations()[question.relation].answers]
        assert right.isdisjoint(map(normalise, question.distractors)), question
        assert len(question.distractors) >= 2, question


def test_right_answers_are_right_and_distractors_wrong():
    judge = RuleJudge()
    for question in QUESTIONS[:1000]:
        for alias in question.aliases:
            assert judge.judge(alias, question, False) is Verdict.RIGHT, (question, alias)
        for other in question.distractors:
            if not any(contains(normalise(other), normalise(a)) for a in question.aliases):
                verdict = judge.judge(other, question, False)
                assert verdict is not Verdict.RIGHT, (question, other)


def test_most_answers_repeat_in_their_relation():
    """A study pairs a right and a wrong use of one answer."""
    repeated = 0
    for name in relations():
        counts = Counter(answers(name).values())
        repeated += sum(count for count in counts.values() if count > 1)
    assert repeated > 0.8 * len(QUESTIONS)
    assert f"{repeated / len(QUESTIONS):.0%} of the questions share" in DOCUMENT


AIRPORTS = airportsdata.load("IATA").values()
REGION = {"Newfoundland": "Newfoundland and Labrador", "Orissa": "Odisha"}


@pytest.mark.parametrize(
    ("relation", "country", "least"),
    [
        ("us_city_state", "US", 90),
        ("canadian_city_province", "CA", 25),
        ("australian_city_state", "AU", 15),
        ("indian_city_state", "IN", 15),
    ],
)
def test_cities_are_where_their_airports_are(relation, country, least):
    regions = defaultdict(set)
    for airport in AIRPORTS:
        if airport["country"] == country:
            region = airport["subd"]
            regions[normalise(airport["city"])].add(normalise(REGION.get(region, region)))
    cities = answers(relation)
    known = {city: regions[normalise(city)] for city in cities if regions[normalise(city)]}
    assert len(known) >= least
    known.pop("Dehradun", None)  # in Uttarakhand since 2000; airportsdata has Uttar Pradesh
    wrong = {c: (cities[c], of) for c, of in known.items() if normalise(cities[c]) not in of}
    assert wrong == {}


@pytest.mark.parametrize(
    ("relation", "names"),
    [("month_order", list(calendar.month_name)[1:]), ("weekday_order", list(calendar.day_name))],
)
def test_months_and_days_are_in_order(relation, names):
    checked = 0
    for subject, answer in answers(relation).items():
        for words, step in (("right after ", 1), ("right before ", -1)):
            if subject.startswith(words):
                position = names.index(subject.removeprefix(words))
                assert answer == names[(position + step) % len(names)], subject
                checked += 1
    assert checked >= 12


def test_roman_numerals():
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    for numeral, number in answers("roman_numeral").items():
        digits = [values[letter] for letter in numeral]
        signed = [-d if d < max(digits[i:]) else d for i, d in enumerate(digits)]
        assert number == str(sum(signed)), numeral


def test_greek_letters_exist():
    letters = {
        unicodedata.name(chr(code)).removeprefix("GREEK SMALL LETTER ").lower()
        for code in range(0x3B1, 0x3CA)
    }
    letters |= {"lambda"}  # Unicode's name is "lamda"
    assert set(answers("greek_letter").values()) <= letters


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("question = ", "is not valid TOML"),
        ('question = "Who?"\nanswers = "x"\n[facts]\na = "b"', "question: String should match"),
        ('question = "Who is {}?"\nanswers = "x"', "facts: Field required"),
        ('question = "Who is {}?"\nanswers = "x"\n[facts]\na = 1', "facts.a"),
        ('question = "Who is {}?"\nanswers = "x"\nkind = 1\n[facts]\na = "b"', "kind: Extra"),
    ],
)
def test_a_faulty_file_is_named(text, words, tmp_path: Path):
    (tmp_path / "capital.toml").write_text(text, encoding="utf-8")
    with pytest.raises(HQError, match=f"capital.toml.*{words}"):
        read_relation(tmp_path / "capital.toml")
