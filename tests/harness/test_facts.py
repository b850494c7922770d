"""The scenario `facts`: enough questions, none ambiguous, stale entries corrected."""

import os
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from harness.judges.base import Question, Verdict
from harness.judges.rules import RuleJudge
from harness.judges.text import normalise
from harness.scenarios import SCENARIOS, load_questions
from harness.scenarios.facts.corrections import CORRECTIONS
from harness.scenarios.facts.names import CURRENCY_UNITS
from harness.scenarios.facts.records import countries
from harness.scenarios.prompts import DEFAULT_SHOTS
from harness.scenarios.short_answers import Fact, unambiguous
from hq.errors import HQError

# The capital in countryinfo 1.0.1, and the current one.
CAPITALS = {
    "BI": ("Bujumbura", "Gitega"),
    "KZ": ("Nur-Sultan", "Astana"),
    "SZ": ("Lobamba", "Mbabane"),
    "LK": ("Colombo", "Sri Jayawardenepura Kotte"),
    "MP": ("Saipan", "Capitol Hill"),
    "SM": ("City of San Marino", "San Marino"),
}
NO_CAPITAL = "IL PS EH BO ZA GQ NR TK MS HK MO IO SJ TF GS BQ VA".split()
CURRENCIES = {
    "BY": "BYN",
    "MR": "MRU",
    "ST": "STN",
    "VE": "VES",
    "ZM": "ZMW",
    "SL": "SLE",
    "HR": "EUR",
    "BG": "EUR",
    "SV": "USD",
    "CU": "CUP",
}


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return load_questions("facts")


@pytest.fixture(scope="module")
def by_id(questions: list[Question]) -> dict[str, Question]:
    return {question.id: question for question in questions}


def test_there_are_thousands_of_questions_over_many_relations(questions: list[Question]) -> None:
    counts = Counter(question.relation for question in questions)
    assert sum(counts.values()) > 6000
    assert len(counts) >= 16
    assert min(counts.values()) >= 50
    assert counts["airport_city"] + counts["airport_country"] < 0.05 * len(questions)


def test_ids_and_wordings_are_unique(questions: list[Question]) -> None:
    assert len({q.id for q in questions}) == len(questions)
    assert len({normalise(q.question) for q in questions}) == len(questions)


def test_a_question_names_its_country_or_element(by_id: dict[str, Question]) -> None:
    france = by_id["capital:FR"]
    assert france.question == "What is the capital of France?"
    assert france.aliases == ("Paris",)
    assert france.entities == ("country:FR",)
    assert by_id["symbol:2"].aliases == ("He",)
    assert by_id["symbol:2"].entities == ("element:He",)
    assert by_id["province_of:JP/Hokkaido"].entities == ("place:hokkaido",)
    assert all(len(q.entities) == 1 for q in by_id.values())


def test_the_entity_of_a_place_is_not_its_country(questions: list[Question]) -> None:
    """All right answers "Japan" would have one entity, and each wrong "Japan" another."""
    places = ("province_of", "city_country", "airport_city", "airport_country")
    for question in questions:
        kind, _, name = question.entities[0].partition(":")
        if question.relation in places:
            assert kind in ("place", "airport")
            assert name not in {normalise(alias) for alias in question.aliases}
            assert normalise(name) in normalise(question.question)
        else:
            assert kind in ("country", "element")


def test_every_alias_is_right_and_every_distractor_wrong(questions: list[Question]) -> None:
    judge = RuleJudge()
    for question in questions:
        wanted = dict.fromkeys(question.aliases, Verdict.RIGHT)
        wanted |= dict.fromkeys(question.distractors, Verdict.WRONG)
        for response, verdict in wanted.items():
            assert judge.judge(response, question, truncated=False) is verdict, (question, response)


def test_every_question_has_several_distractors(questions: list[Question]) -> None:
    assert all(3 <= len(set(q.distractors)) <= 5 for q in questions)


def test_distractors_of_a_name_include_those_that_contain_it(by_id: dict[str, Question]) -> None:
    guinea = by_id["capital_of:GN"]
    assert {"Guinea-Bissau", "Equatorial Guinea", "Papua New Guinea"} <= set(guinea.distractors)


def test_no_question_contains_its_answer(questions: list[Question]) -> None:
    for question in questions:
        words = f" {normalise(question.question)} "
        assert not any(f" {normalise(a)} " in words for a in question.aliases if len(a) > 2)


def test_shots_are_not_questions_of_the_scenario(questions: list[Question]) -> None:
    asked = {normalise(q.question) for q in questions}
    assert asked.isdisjoint(normalise(question) for question, _ in DEFAULT_SHOTS)


def test_the_seed_changes_order_and_distractors_but_no_question() -> None:
    first, again, other = (
        load_questions("facts", seed=1),
        load_questions("facts", seed=1),
        load_questions("facts", seed=2),
    )
    assert first == again
    assert [q.id for q in first] != [q.id for q in other]
    assert {(q.id, q.question, q.aliases) for q in first} == {
        (q.id, q.question, q.aliases) for q in other
    }
    assert {q.id: q.distractors for q in first} != {q.id: q.distractors for q in other}


def test_the_limit_takes_the_first_of_the_shuffled_questions() -> None:
    assert load_questions("facts", seed=3, limit=40) == load_questions("facts", seed=3)[:40]


@pytest.mark.parametrize("code", CAPITALS)
def test_stale_capitals_are_replaced(code: str) -> None:
    stale, current = CAPITALS[code]
    capital = countries()[code].capital
    assert capital is not None
    assert capital[0] == current
    assert stale != current


@pytest.mark.parametrize("code", NO_CAPITAL)
def test_contested_and_missing_capitals_are_not_asked(code: str) -> None:
    assert countries()[code].capital is None


@pytest.mark.parametrize("code", CURRENCIES)
def test_stale_currencies_are_replaced(code: str) -> None:
    assert countries()[code].currency == CURRENCIES[code]


@pytest.mark.parametrize("code", "ZW BT HT LS NA PA".split())
def test_countries_with_several_currencies_are_not_asked(code: str) -> None:
    assert countries()[code].currency is None


def test_units_of_several_currencies_are_not_asked_for() -> None:
    units = [normalise(unit) for names in CURRENCY_UNITS.values() for unit in set(names)]
    assert {"dollar", "peso", "franc", "pound", "dinar", "rupee", "krone"}.isdisjoint(units)


def test_every_country_occurs_once() -> None:
    names = Counter(country.name for country in countries().values())
    assert max(names.values()) == 1
    assert "AN" not in countries()
    assert countries()["VA"].name == "Vatican City"
    assert countries()["CW"].capital == ("Willemstad",)
    assert countries()["PS"].demonym == "Palestinian"


def test_every_correction_has_a_reason_and_occurs_once() -> None:
    assert all(correction.reason for correction in CORRECTIONS)
    assert (
        max(Counter((correction.field, correction.key) for correction in CORRECTIONS).values()) == 1
    )


@pytest.mark.parametrize(
    ("place", "country"),
    [("Andalucia", "SS"), ("Kinshasa", "CG"), ("Junqali", "SD"), ("Canillo", "AO")],
)
def test_provinces_filed_under_another_country_are_dropped(
    place: str, country: str, by_id: dict[str, Question]
) -> None:
    assert f"province_of:{country}/{place}" not in by_id


def test_places_of_one_name_in_two_countries_are_dropped(by_id: dict[str, Question]) -> None:
    asked = {key.partition("/")[2] for key in by_id if "/" in key}
    ambiguous = {"Paris", "London", "Limburg", "Punjab", "Georgia", "Victoria", "Brest", "Newport"}
    assert asked.isdisjoint(ambiguous)


def test_no_country_has_more_places_than_the_cap(questions: list[Question]) -> None:
    by_country: dict[tuple[str, str], int] = defaultdict(int)
    for question in questions:
        if question.relation in ("city_country", "province_of"):
            by_country[question.relation, question.id.partition(":")[2][:2]] += 1
    assert max(by_country.values()) == 40


def test_a_code_that_several_countries_share_has_no_inverse(by_id: dict[str, Question]) -> None:
    assert "nationality:CD" in by_id
    assert "nationality_of:CD" not in by_id
    assert "nationality_of:DM" not in by_id


def test_shared_wordings_and_giveaways_are_dropped() -> None:
    facts = [
        Fact("a", "Kingston is the capital of which country?", ("Jamaica",), "x"),
        Fact("b", "Kingston is the capital of which country?", ("Norfolk Island",), "y"),
        Fact("c", "What is the capital of Singapore?", ("Singapore",), "z"),
        Fact("d", "What is the capital of Peru?", ("Lima",), "w"),
    ]
    assert [fact.key for fact in unambiguous(facts)] == ["d"]


def test_an_unknown_scenario_names_the_nearest() -> None:
    with pytest.raises(HQError, match="did you mean 'facts'"):
        load_questions("factz")


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(HQError, match="its options are seed, limit"):
        load_questions("facts", sead=1)


def test_a_scenario_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="'facts' is registered twice"):
        SCENARIOS.add("facts", SCENARIOS["facts"])


def test_a_scenario_without_questions_names_those_that_have_some() -> None:
    with pytest.raises(
        HQError, match=r"'falseqa' has no questions.*bioasq, facts, knowledge, nq, triviaqa"
    ):
        load_questions("falseqa")


@pytest.mark.parametrize("package", ["countryinfo", "airportsdata", "periodictable"])
def test_without_its_packages_only_this_scenario_fails(package):
    script = f"""
import sys
sys.modules[{package!r}] = None  # makes the import fail
from harness.scenarios import SCENARIOS, load_questions
from hq.errors import HQError
assert "triviaqa" in SCENARIOS
try:
    load_questions("facts")
except HQError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.stdout == f"The scenario 'facts' needs {package}: pip install 'hq[embedded]'.\n"
