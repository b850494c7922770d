"""The rule judge: what counts as right, wrong, uncertain and cut off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges.base import Question, Verdict
from harness.judges.quantities import Match, as_quantity, compare_quantities
from harness.judges.registry import make_judge
from harness.judges.responses import without_reasoning
from harness.judges.rules import RuleJudge
from harness.judges.text import contains, fold, normalise
from hq.errors import HQError


def _verdict(
    response: str, *aliases: str, distractors: tuple[str, ...] = (), truncated: bool = False
) -> Verdict:
    question = Question("q", "?", aliases, "r", (), distractors)
    return RuleJudge().judge(response, question, truncated)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Beatles!", "beatles"),
        ("  A  tale_of two-cities ", "tale of two cities"),
        ("São Tomé", "sao tome"),
        ("Łódź", "lodz"),
        ("N'Djamena", "n djamena"),
        ("Vitamin A", "vitamin a"),
        ("The", "the"),
        ("C# and C++, not C.", "c# and c++ not c"),
        ("AB- or AB+", "ab- or ab+"),
        ("F♯", "f#"),
        ("毛泽东。", "毛 泽 东"),
        ("«Война и мир»", "война и мир"),
        ("Йод, Ёлка", "йод елка"),
        ("القاهرة؟", "قاهرة"),
        ("がん", "が ん"),  # is not かん
        ("１２ and ١٢", "12 and 12"),
        ("10⁸", "10 8"),
        ("Tom &amp; Jerry", "tom and jerry"),
        ("Pa\u00adris\u200b", "paris"),
        ("हिन्दी।", "हिन्दी"),
        ("☿", "☿"),
    ],
)
def test_normalisation(text: str, plain: str) -> None:
    assert normalise(text) == plain


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_folding_keeps_case() -> None:
    assert fold("Ørland, Île") == "Orland, Ile"


@pytest.mark.parametrize(
    ("response", "aliases"),
    [
        ("Paris", ("Paris",)),
        (" paris.", ("Paris",)),
        ("The capital of France is Paris, a city.", ("Paris",)),
        ("It is **Paris**", ("Paris",)),
        ("Asuncion", ("Asunción",)),
        ("the Beatles", ("Beatles",)),
        ("It was Pablo Picasso.", ("Picasso",)),
        ("\n Paris\nQ: next", ("Paris",)),
        ("Unknown", ("Unknown",)),
    ],
)
def test_an_alias_on_word_boundaries_is_right(response: str, aliases: tuple[str, ...]) -> None:
    assert _verdict(response, *aliases) is Verdict.RIGHT


@pytest.mark.parametrize(
    ("response", "aliases"),
    [
        ("Parisian", ("Paris",)),
        ("Nigeria", ("Niger",)),
        ("London\nParis", ("Paris",)),
        ("Vitamin C", ("Vitamin A",)),
        ("London", ("!!!",)),
    ],
)
def test_other_words_and_later_lines_are_wrong(response: str, aliases: tuple[str, ...]) -> None:
    assert _verdict(response, *aliases) is Verdict.WRONG


@pytest.mark.parametrize(
    ("response", "alias", "verdict"),
    [
        ("He", "He", Verdict.RIGHT),
        ("he", "He", Verdict.RIGHT),
        ("The symbol is He.", "He", Verdict.RIGHT),
        ("The symbol is 'He' (helium)", "He", Verdict.RIGHT),
        ("He is an actor", "He", Verdict.WRONG),
        ("Helium", "He", Verdict.WRONG),
        ("I think it is Ne", "I", Verdict.WRONG),
        ("The symbol is I", "I", Verdict.RIGHT),
        ("CO is a gas", "Co", Verdict.WRONG),
        ("It's the U.S.", "S", Verdict.WRONG),
        ("K", "K", Verdict.RIGHT),
        ("K-pop", "K", Verdict.WRONG),
        ("33", "33", Verdict.RIGHT),
        ("The number is 33.", "33", Verdict.RIGHT),
        ("33.5", "33", Verdict.WRONG),
        ("1,933", "933", Verdict.WRONG),
        ("133", "33", Verdict.WRONG),
        ("33, probably", "33", Verdict.RIGHT),
        ("+33", "+33", Verdict.RIGHT),
        ("33", "+33", Verdict.RIGHT),
        ("The code is +33", "+33", Verdict.RIGHT),
        ("+331", "+33", Verdict.WRONG),
        (".fr", ".fr", Verdict.RIGHT),
        ("fr", ".fr", Verdict.RIGHT),
        ("The domain is .fr.", ".fr", Verdict.RIGHT),
        (".fra", ".fr", Verdict.WRONG),
        ("1945", "1945", Verdict.RIGHT),
        ("in 1945", "1945", Verdict.RIGHT),
    ],
)
def test_short_aliases_and_numbers_are_matched_with_care(
    response: str, alias: str, verdict: Verdict
) -> None:
    assert _verdict(response, alias) is verdict


def test_a_longer_name_among_the_distractors_counts_as_the_distractor() -> None:
    others = ("Guinea-Bissau", "Papua New Guinea")
    assert _verdict("Guinea-Bissau", "Guinea", distractors=others) is Verdict.WRONG
    assert _verdict("Guinea", "Guinea", distractors=others) is Verdict.RIGHT
    both = "Guinea, not Guinea-Bissau"
    assert _verdict(both, "Guinea", distractors=others) is Verdict.RIGHT


@pytest.mark.parametrize(
    "response",
    [
        "I don't know.",
        "I don’t know",
        "I do not know the answer",
        "I'm not sure, but it may be Paris",
        "I am unable to answer",
        "As an AI language model, I cannot say Paris",
        "Unknown",
        "I have no idea",
        "",
        "  \n ",
        "...",
    ],
)
def test_no_answer_is_uncertain(response: str) -> None:
    assert _verdict(response, "Paris") is Verdict.UNCERTAIN


def test_cut_off_before_an_answer_is_set_aside() -> None:
    assert _verdict("The capital of France is the", "Paris", truncated=True) is Verdict.CUT
    assert _verdict("The capital is Paris, which is", "Paris", truncated=True) is Verdict.RIGHT
    assert _verdict("I don't know, as the", "Paris", truncated=True) is Verdict.UNCERTAIN


words = st.text("abcdefgh", min_size=3, max_size=8)


@given(words, st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_an_alias_inside_any_sentence_is_found(
    alias: str, before: list[str], after: list[str]
) -> None:
    assert _verdict(" ".join([*before, alias.upper(), *after]), alias) is Verdict.RIGHT


@given(words, words)
def test_containment_is_of_whole_words(text: str, phrase: str) -> None:
    assert contains(text, phrase) is (text == phrase)


def test_judges_are_found_by_name() -> None:
    assert isinstance(make_judge("rules"), RuleJudge)
    with pytest.raises(HQError, match="did you mean 'rules'"):
        make_judge("rule")


@pytest.mark.parametrize(
    ("response", "rest"),
    [
        ("<think>a</think>\nParis", "\nParis"),
        ("a</think>Paris", "Paris"),
        ("<think>a", None),
        ("<think>a</think><think>b", None),
        ("Paris <think>is it?", "Paris"),
        ("2 < 3", "2 < 3"),
        ("[THINK]a[/THINK]Paris", "Paris"),
        ("<|channel|>analysis<|message|>a<|end|>", None),
        ("<|channel|>final<|message|>Paris", "Paris"),
    ],
)
def test_reasoning_is_not_part_of_an_answer(response: str, rest: str | None) -> None:
    assert without_reasoning(response) == rest


@pytest.mark.parametrize(
    ("accepted", "given_", "nearness"),
    [
        ("1,000", "1000", Match.SAME),
        ("1,234", "1.234", Match.UNCLEAR),
        ("1,500", "1.5", Match.OTHER),
        ("8848 m", "8.848 km", Match.SAME),
        ("8848 m", "29,029 ft", Match.UNCLEAR),
        ("5 kg", "5 km", Match.OTHER),
        ("44 BC", "44", Match.UNCLEAR),
        ("44 BC", "44 AD", Match.OTHER),
        ("3.14159", "3.14", Match.UNCLEAR),
        ("40", "40-50", Match.UNCLEAR),
        ("1914-18", "1914 to 1918", Match.SAME),
        ("-40", "40", Match.OTHER),
        ("6.02 × 10^23", "6.02e23", Match.SAME),
    ],
)
def test_quantities(accepted: str, given_: str, nearness: Match) -> None:
    one, other = as_quantity(accepted), as_quantity(given_)
    assert one is not None
    assert other is not None
    assert compare_quantities(one, other) is nearness


@pytest.mark.parametrize("text", ["007", "33rd", "Route 66", "K-33", "1990s", "one of three", "x"])
def test_texts_that_are_not_quantities(text: str) -> None:
    assert as_quantity(text) is None


@given(st.text())
def test_no_text_breaks_the_judge(text: str) -> None:
    for aliases in (("Paris",), ("1,000",), ("no",), ("C#",), ("北京",)):
        assert _verdict(text, *aliases) in Verdict


@pytest.mark.parametrize(
    "name", ["Wellington", "Okinawa", "Himalaya", "Hello, Dolly!", "1. FC Köln"]
)
def test_a_name_that_begins_like_a_preamble_is_an_answer(name: str) -> None:
    assert _verdict(f" {name}", name) is Verdict.RIGHT
