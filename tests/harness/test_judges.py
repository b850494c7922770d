"""The rule judge: what counts as right, wrong, uncertain and cut off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges import RuleJudge, Verdict, judge
from harness.scenarios import Question
from harness.text import contains, fold, normalise
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


def test_a_longer_name_among_the_distractors_is_read_as_itself() -> None:
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
    assert isinstance(judge("rules"), RuleJudge)
    with pytest.raises(HQError, match="did you mean 'rules'"):
        judge("rule")
