"""Splits: no entity on two sides, the asked-for shares, no influence of the order."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges.base import Question
from harness.judges.text import normalise
from harness.scenarios import load_questions
from harness.stages.splits import assign, components
from hq.errors import HQError

FRACTIONS = {"train": 0.5, "calibration": 0.2, "test": 0.3}

entity_lists = st.lists(
    st.tuples(st.sampled_from("rst"), st.lists(st.integers(0, 15), max_size=3)), max_size=30
)


def _questions(drawn: list[tuple[str, list[int]]]) -> list[Question]:
    return [
        Question(
            f"q{n}", f"What is {n}?", ("x",), relation, tuple(f"e{entity}" for entity in entities)
        )
        for n, (relation, entities) in enumerate(drawn)
    ]


@given(entity_lists, st.integers(0, 3))
def test_no_entity_stands_on_two_sides(drawn: list[tuple[str, list[int]]], seed: int) -> None:
    questions = _questions(drawn)
    split = assign(questions, FRACTIONS, seed)
    assert set(split) == {q.id for q in questions}
    sides: dict[str, set[str]] = {}
    for question in questions:
        for entity in question.entities:
            sides.setdefault(entity, set()).add(split[question.id])
    assert all(len(side) == 1 for side in sides.values())


@given(entity_lists, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_questions_has_no_influence(
    drawn: list[tuple[str, list[int]]], seed: int, random: Random
) -> None:
    questions = _questions(drawn)
    shuffled = random.sample(questions, len(questions))
    assert assign(questions, FRACTIONS, seed) == assign(shuffled, FRACTIONS, seed)
    assert components(questions) == components(shuffled)


@given(entity_lists)
def test_questions_are_in_one_component_exactly_when_a_chain_of_entities_links_them(
    drawn: list[tuple[str, list[int]]],
) -> None:
    questions = _questions(drawn)
    groups = [({q.id}, set(q.entities)) for q in questions]
    merged: list[tuple[set[str], set[str]]] = []
    for ids, entities in groups:
        touching = [g for g in merged if g[1] & entities]
        merged = [g for g in merged if not g[1] & entities]
        merged.append(
            (ids.union(*(g[0] for g in touching)), entities.union(*(g[1] for g in touching)))
        )
    expected = {name: min(ids) for ids, _ in merged for name in ids}
    assert components(questions) == expected


def test_shares_hold_within_each_relation() -> None:
    questions = [
        Question(f"{relation}{n}", f"{relation} {n}?", ("x",), relation, (f"entity {n % 60}",))
        for relation, count in (("a", 600), ("b", 200), ("c", 60))
        for n in range(count)
    ]
    split = assign(questions, FRACTIONS, seed=0)
    for relation in "abc":
        sides = Counter(split[q.id] for q in questions if q.relation == relation)
        for name, share in FRACTIONS.items():
            assert sides[name] / sides.total() == pytest.approx(share, abs=0.05)


def test_facts_split_near_the_asked_for_shares_in_every_relation() -> None:
    questions = load_questions("facts")
    split = assign(questions, FRACTIONS, seed=0)
    for relation in {q.relation for q in questions}:
        sides = Counter(split[q.id] for q in questions if q.relation == relation)
        for name, share in FRACTIONS.items():
            assert sides[name] / sides.total() == pytest.approx(share, abs=0.04)


def test_the_seed_moves_components() -> None:
    questions = _questions([("r", [n]) for n in range(16)])
    assert assign(questions, FRACTIONS, seed=0) == assign(questions, FRACTIONS, seed=0)
    assert assign(questions, FRACTIONS, seed=0) != assign(questions, FRACTIONS, seed=1)


@pytest.mark.parametrize(
    "fractions", [{}, {"train": 0.5, "test": 0.6}, {"train": 1.0, "test": 0.0}]
)
def test_fractions_must_be_positive_and_add_up(fractions: dict[str, float]) -> None:
    with pytest.raises(HQError, match="positive ones that add up to 1"):
        assign(_questions([("r", [1])]), fractions, seed=0)


def test_a_repeated_id_is_refused() -> None:
    questions = _questions([("r", [1])]) * 2
    with pytest.raises(HQError, match="'q0' appears twice"):
        assign(questions, FRACTIONS, seed=0)


def test_the_wording_links_but_is_no_entity_of_others() -> None:
    asked = [("a", "Who wrote it?", "x"), ("b", "who wrote IT", "y"), ("c", "Who?", "who wrote it")]
    questions = [Question(id, text, ("z",), "r", (entity,)) for id, text, entity in asked]
    assert components(questions) == {"a": "a", "b": "a", "c": "c"}


def test_what_is_no_word_links_nothing() -> None:
    questions = [Question(id, "?!", ("z",), "r", ()) for id in "ab"]
    assert components(questions) == {"a": "a", "b": "b"}


def test_no_two_facts_share_a_wording() -> None:
    """So the wording changes no component of the default study."""
    questions = load_questions("facts")
    assert len({normalise(q.wording) for q in questions}) == len(questions)
