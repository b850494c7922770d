"""Units, folds and the reserve: nothing related is divided, shares hold, no influence of the order."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges.base import Question
from harness.judges.text import normalise
from harness.scenarios import load_questions
from harness.stages.units import (
    LARGEST_UNIT,
    Part,
    assign_folds,
    assign_parts,
    assign_units,
    components,
    require_both_labels,
    require_small_units,
)
from hq.errors import HQError

RESERVE: dict[Part, float] = {"calibration": 0.2, "held-out": 0.3}
SHARES = {"sample": 0.5, **RESERVE}

entity_lists = st.lists(
    st.tuples(st.sampled_from("rst"), st.lists(st.integers(0, 15), max_size=3)), max_size=30
)
answer_lists = st.lists(st.sampled_from(["", *"abcdefgh"]), min_size=30, max_size=30)


def _questions(drawn: list[tuple[str, list[int]]]) -> list[Question]:
    return [
        Question(
            f"q{n}", f"What is {n}?", ("x",), relation, tuple(f"e{entity}" for entity in entities)
        )
        for n, (relation, entities) in enumerate(drawn)
    ]


def _merged(keys: dict[str, set[str]]) -> dict[str, str]:
    """The connected components of ids with common keys, merged one id at a time."""
    groups: list[tuple[set[str], set[str]]] = []
    for id, own in keys.items():
        touching = [group for group in groups if group[1] & own]
        groups = [group for group in groups if not group[1] & own]
        groups.append(
            ({id}.union(*(ids for ids, _ in touching)), own.union(*(k for _, k in touching)))
        )
    return {id: min(ids) for ids, _ in groups for id in ids}


@given(entity_lists, st.integers(0, 3))
def test_no_entity_is_in_two_parts(drawn: list[tuple[str, list[int]]], seed: int) -> None:
    questions = _questions(drawn)
    part = assign_parts(questions, RESERVE, seed)
    assert set(part) == {q.id for q in questions}
    parts: dict[str, set[str]] = {}
    for question in questions:
        for entity in question.entities:
            parts.setdefault(entity, set()).add(part[question.id])
    assert all(len(of_entity) == 1 for of_entity in parts.values())


@given(entity_lists, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_questions_has_no_influence(
    drawn: list[tuple[str, list[int]]], seed: int, random: Random
) -> None:
    questions = _questions(drawn)
    shuffled = random.sample(questions, len(questions))
    assert assign_parts(questions, RESERVE, seed) == assign_parts(shuffled, RESERVE, seed)
    assert components(questions) == components(shuffled)


@given(entity_lists)
def test_questions_are_in_one_component_exactly_when_a_chain_of_entities_links_them(
    drawn: list[tuple[str, list[int]]],
) -> None:
    questions = _questions(drawn)
    assert components(questions) == _merged({q.id: set(q.entities) for q in questions})


@given(entity_lists, answer_lists)
def test_units_are_linked_by_answers_and_entities(
    drawn: list[tuple[str, list[int]]], drawn_answers: list[str]
) -> None:
    questions = _questions(drawn)
    answers = {q.id: answer for q, answer in zip(questions, drawn_answers, strict=False)}
    keys = {q.id: {*q.entities} | ({f"gave {answers[q.id]}"} - {"gave "}) for q in questions}
    expected = _merged(keys)
    assert assign_units(questions, answers) == expected
    sizes = Counter(expected.values())
    if sizes and max(sizes.values()) > LARGEST_UNIT * len(questions):
        with pytest.raises(HQError, match="more than 20%"):
            require_small_units([*expected.values()])
    else:
        require_small_units([*expected.values()])


def test_an_entity_with_the_name_of_an_answer_links_nothing() -> None:
    questions = [Question(str(n), f"What is {n}?", ("x",), "r", (f"e{n}",)) for n in range(10)]
    answers = {q.id: f"e{9 - n}" for n, q in enumerate(questions)}
    assert assign_units(questions, answers) == {q.id: q.id for q in questions}


def test_a_large_unit_is_an_error_with_the_sizes() -> None:
    require_small_units([*"aaaabbbccdefghijklmn"])
    with pytest.raises(HQError, match=r"holds 5 of the 20 .*more than 20%.* hold 5, 3, 2, 1, 1:"):
        require_small_units([*"aaaaabbbccdefghijklm"])


unit_lists = st.lists(
    st.tuples(st.integers(0, 20), st.booleans(), st.sampled_from("rst")), min_size=1, max_size=80
)


@given(unit_lists, st.integers(2, 5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_folds_are_of_whole_units_and_do_not_depend_on_the_order(
    drawn: list[tuple[int, bool, str]], count: int, seed: int, random: Random
) -> None:
    def folds(rows: list[tuple[int, bool, str]]) -> list[int] | str:
        units, labels, relations = zip(*rows, strict=True)
        try:
            return assign_folds([f"u{unit}" for unit in units], labels, relations, count, seed)
        except HQError as error:
            return str(error)

    assigned = folds(drawn)
    order = random.sample(range(len(drawn)), len(drawn))
    shuffled = folds([drawn[i] for i in order])
    if isinstance(assigned, str):
        assert assigned == shuffled
        return
    assert [assigned[i] for i in order] == shuffled
    pairs = {(unit, fold) for (unit, *_), fold in zip(drawn, assigned, strict=True)}
    assert len(pairs) == len({unit for unit, _ in pairs})
    both = {(fold, label) for (_, label, _), fold in zip(drawn, assigned, strict=True)}
    assert both == {(fold, label) for fold in range(count) for label in (False, True)}


def test_folds_have_equal_numbers_of_samples_labels_and_relations() -> None:
    """1,500 samples in units like those of the default study: a few large ones, many small ones."""
    rng = np.random.default_rng(0)
    sizes = [140, 130, 130, 120, 90, 90, *rng.integers(1, 10, 80).tolist() * 2]
    units = np.repeat([f"u{n}" for n in range(len(sizes))], [2 * size for size in sizes]).tolist()
    labels = [row % 2 == 0 for row in range(len(units))]  # balanced within each unit
    relations = rng.choice(list("abc"), len(units), p=[0.5, 0.4, 0.1]).tolist()
    for seed in range(3):
        folds = assign_folds(units, labels, relations, 5, seed)
        by_fold = Counter(folds)
        assert max(by_fold.values()) - min(by_fold.values()) <= 0.02 * len(units)
        with_label = Counter(zip(folds, labels, strict=True))
        assert all(2 * n == by_fold[fold] for (fold, _), n in with_label.items())
        for relation in "abc":
            share = Counter(f for f, r in zip(folds, relations, strict=True) if r == relation)
            assert max(share.values()) < 1.3 * min(share.values())


def test_the_seed_moves_units() -> None:
    units, labels, relations = [f"u{n // 2}" for n in range(40)], [False, True] * 20, ["r"] * 40
    first, again, other = (assign_folds(units, labels, relations, 4, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_fold_without_a_label_is_an_error_with_the_sizes() -> None:
    with pytest.raises(HQError, match=r"the 3 folds have 2 and 0, 0 and 2, 1 and 1"):
        require_both_labels([0, 0, 1, 1, 2, 2], [False, False, True, True, False, True])
    with pytest.raises(HQError, match="the 2 folds have 1 and 1, 0 and 0"):
        require_both_labels([0, 0], [False, True])
    with pytest.raises(HQError, match=r"the 99 folds have .* fewer folds"):
        assign_folds(["a", "b"], [False, True], ["r", "r"], 99, seed=0)


def test_shares_hold_within_each_relation() -> None:
    questions = [
        Question(f"{relation}{n}", f"{relation} {n}?", ("x",), relation, (f"entity {n % 60}",))
        for relation, count in (("a", 600), ("b", 200), ("c", 60))
        for n in range(count)
    ]
    part = assign_parts(questions, RESERVE, seed=0)
    for relation in "abc":
        parts = Counter(part[q.id] for q in questions if q.relation == relation)
        for name, share in SHARES.items():
            assert parts[name] / parts.total() == pytest.approx(share, abs=0.05)


def test_the_reserve_of_facts_has_its_share_of_every_relation() -> None:
    questions = load_questions("facts")
    part = assign_parts(questions, {"calibration": 0.05, "held-out": 0.05}, seed=0)
    for relation in {q.relation for q in questions}:
        parts = Counter(part[q.id] for q in questions if q.relation == relation)
        assert parts["calibration"] / parts.total() == pytest.approx(0.05, abs=0.025)
        assert parts["held-out"] / parts.total() == pytest.approx(0.05, abs=0.025)


def test_the_seed_moves_components() -> None:
    questions = _questions([("r", [n]) for n in range(16)])
    assert assign_parts(questions, RESERVE, seed=0) == assign_parts(questions, RESERVE, seed=0)
    assert assign_parts(questions, RESERVE, seed=0) != assign_parts(questions, RESERVE, seed=1)


def test_large_components_stay_among_the_samples() -> None:
    """A reserve of 5% is not filled by one component of 40%."""
    drawn = [("r", [n]) for n in range(20)] + [("r", [100])] * 40 + [("r", [101])] * 40
    part = assign_parts(_questions(drawn), {"calibration": 0.05, "held-out": 0.05}, seed=0)
    assert Counter(part.values()) == {"sample": 90, "calibration": 5, "held-out": 5}


def test_a_repeated_id_is_rejected() -> None:
    questions = _questions([("r", [1])]) * 2
    with pytest.raises(HQError, match="'q0' appears twice"):
        assign_parts(questions, RESERVE, seed=0)


def test_the_wording_links_but_is_no_entity_of_others() -> None:
    asked = [("a", "Who wrote it?", "x"), ("b", "who wrote IT", "y"), ("c", "Who?", "who wrote it")]
    questions = [Question(id, text, ("z",), "r", (entity,)) for id, text, entity in asked]
    assert components(questions) == {"a": "a", "b": "a", "c": "c"}


def test_a_wording_without_words_links_nothing() -> None:
    questions = [Question(id, "?!", ("z",), "r", ()) for id in "ab"]
    assert components(questions) == {"a": "a", "b": "b"}


def test_no_two_facts_share_a_wording() -> None:
    """So the wording changes no component of the default study."""
    questions = load_questions("facts")
    assert len({normalise(q.wording) for q in questions}) == len(questions)
