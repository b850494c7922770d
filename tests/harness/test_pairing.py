"""Which questions are kept: balance, order, and that stopping early changes nothing."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges.base import Question, Verdict
from harness.judges.text import normalise
from harness.stages.pairing import (
    CALIPER,
    MOST_OF_UNIT,
    Candidate,
    TextCandidate,
    pairs,
    text_pairs,
)
from harness.stages.sample import JudgedResponse, QuestionRecord, candidates
from harness.stages.samples import Prompted
from harness.studies.study import Balance
from hq.probe.text import text_only
from hq.stats.auroc import auroc

streams = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60).map(
    lambda rows: [Candidate(str(i), group, label) for i, (group, label) in enumerate(rows)]
)
BALANCES: list[Balance] = ["answer", "text"]
GIVEN = ["Japan", "japan.", "Peru", "The Peru", "Mali"]
asked = st.lists(
    st.tuples(
        st.sampled_from("rs"),
        st.sampled_from(GIVEN),
        st.sampled_from([Verdict.RIGHT, Verdict.WRONG, Verdict.UNCERTAIN]),
    ),
    max_size=60,
)
Asked = list[tuple[str, str, Verdict]]


def answered(rows: Asked) -> tuple[list[Prompted], dict[str, QuestionRecord]]:
    """Questions of these relations, to each of which all responses are the same."""
    prompted, records = [], {}
    for number, (relation, answer, verdict) in enumerate(rows):
        id = f"q{number}"
        question = Question(id, f"What is {id}?", ("x",), relation, ())
        prompted.append(Prompted(question=question, ids=(1,), part="sample", component=id))
        response = JudgedResponse(text=answer, ids=(2,), verdict=verdict, count=3)
        records[id] = QuestionRecord(
            id=id, prompt=(1,), responses=(response,), complete=True, generated=1, naive=3
        )
    return prompted, records


@given(streams, st.integers(1, 40))
def test_every_group_has_as_many_right_as_hallucinated(stream, quota):
    by_id = {c.id: c for c in stream}
    kept = [by_id[id] for pair in pairs(stream, quota) for id in pair]
    counts = Counter((c.group, c.hallucinated) for c in kept)
    assert all(counts[group, True] == counts[group, False] for group in "abc")
    assert len({c.id for c in kept}) == len(kept)
    assert len(kept) <= 2 * quota


@pytest.mark.parametrize("balance", BALANCES)
@given(rows=asked)
def test_a_prefix_that_reaches_a_quota_has_the_first_pairs_of_everything(
    balance: Balance, rows: Asked
) -> None:
    """For every quota and every prefix: where sampling stops does not change what is kept."""
    prompted, records = answered(rows)
    everything = pairs(candidates(prompted, records, balance), len(rows) + 1)
    for stop in range(len(rows) + 1):
        asked_only = {p.question.id: records[p.question.id] for p in prompted[:stop]}
        closed = pairs(candidates(prompted, asked_only, balance), len(rows) + 1)
        assert closed == everything[: len(closed)]
        for quota in range(1, len(closed) + 1):
            first = pairs(candidates(prompted[:stop], asked_only, balance), quota)
            assert first == everything[:quota]


@given(rows=asked)
def test_pairs_by_answer_agree_in_relation_and_normalised_answer(rows: Asked) -> None:
    prompted, records = answered(rows)
    of_id = {f"q{n}": (relation, normalise(answer)) for n, (relation, answer, _) in enumerate(rows)}
    by_answer = pairs(candidates(prompted, records, "answer"), len(rows))
    assert all(of_id[right] == of_id[wrong] for right, wrong in by_answer)
    by_relation = pairs(candidates(prompted, records, "text"), len(rows))
    assert all(of_id[right][0] == of_id[wrong][0] for right, wrong in by_relation)
    for id_pairs in (by_answer, by_relation):
        for right, wrong in id_pairs:
            assert (records[right].hallucinated, records[wrong].hallucinated) == (False, True)
    assert len(by_answer) <= len(by_relation)


@given(streams)
def test_no_pair_is_missed(stream):
    counts = Counter((c.group, c.hallucinated) for c in stream)
    possible = sum(min(counts[g, True], counts[g, False]) for g in "abc")
    assert len(pairs(stream, len(stream) + 1)) == possible


def test_pairs_name_the_right_answer_first():
    stream = [Candidate("wrong", 0, True), Candidate("right", 0, False)]
    assert pairs(stream, 1) == [("right", "wrong")]


def written(n: int, seed: int = 0) -> list[TextCandidate]:
    """Responses to questions of two relations, in which a fifth of the famous ones are wrong."""
    random = Random(seed)
    rows = []
    for i in range(n):
        famous = random.random() < 0.5
        wrong = random.random() < (0.2 if famous else 0.8)
        rows.append(
            TextCandidate(
                id=f"q{i}",
                relation=random.choice("rs"),
                question=f"Who made {'the famous' if famous else 'some'} thing {i % 7}?",
                response=random.choice(["Ann", "Bob", "Cleo"]),
                hallucinated=wrong,
                unit=f"u{i}",
                fold=i % 3,
            )
        )
    return rows


def text_areas(rows: list[TextCandidate]) -> dict[str, float]:
    """The out-of-fold AUROC of every text-only control."""
    y, folds = (np.array([getattr(r, f) for r in rows], int) for f in ("hallucinated", "fold"))
    decisions: dict[str, np.ndarray] = {}
    for fold in range(3):
        questions, responses = [r.question for r in rows], [r.response for r in rows]
        fitted = text_only(questions, responses, y, np.flatnonzero(folds != fold))
        for name, values in fitted.items():
            decisions.setdefault(name, np.zeros(len(rows)))[folds == fold] = values[folds == fold]
    return {name: auroc(values, y, folds) for name, values in decisions.items()}


def test_text_pairs_share_relation_and_fold_and_have_either_label():
    rows = written(240)
    by_id = {row.id: row for row in rows}
    matched = [(by_id[right], by_id[wrong]) for right, wrong in text_pairs(rows, 1000)]
    assert len(matched) > 30
    for right, wrong in matched:
        assert (right.relation, right.fold) == (wrong.relation, wrong.fold)
        assert (right.hallucinated, wrong.hallucinated) == (False, True)
        assert ("famous" in right.question) == ("famous" in wrong.question)
    assert len({row.id for pair in matched for row in pair}) == 2 * len(matched)


def test_after_text_matching_no_text_predicts_the_label():
    rows = written(600)
    assert text_areas(rows)["text-question"] > 0.75
    chosen = {id for pair in text_pairs(rows, 1000) for id in pair}
    areas = text_areas([row for row in rows if row.id in chosen])
    assert all(abs(area - 0.5) < 0.08 for area in areas.values()), areas


def test_without_anything_to_learn_from_the_text_every_possible_pair_is_formed():
    rows = [row._replace(question="Who?", response="Ann") for row in written(200)]
    counts = Counter((row.relation, row.fold, row.hallucinated) for row in rows)
    possible = sum(min(counts[r, f, True], counts[r, f, False]) for r in "rs" for f in range(3))
    assert len(text_pairs(rows, 1000)) == possible


def test_pairs_beyond_the_caliper_are_not_formed():
    """Each label has its own word, so texts of different labels differ by the whole range."""
    rows = [
        row._replace(question=f"Who made {'x' if row.hallucinated else 'y'}?", response="Ann")
        for row in written(120)
    ]
    assert CALIPER < 1
    assert text_pairs(rows, 1000) == []


def test_the_order_of_candidates_does_not_matter():
    rows = written(150)
    shuffled = Random(1).sample(rows, len(rows))
    assert sorted(text_pairs(shuffled, 1000)) == sorted(text_pairs(rows, 1000))


def test_the_quota_keeps_the_most_similar_pairs():
    rows = written(150)
    assert text_pairs(rows, 10) == text_pairs(rows, 1000)[:10]


def test_no_unit_gets_more_samples_than_it_may():
    rows = [row._replace(unit="large" if i % 2 else row.unit) for i, row in enumerate(written(300))]
    unit_of = {row.id: row.unit for row in rows}
    free = text_pairs(written(300), 1000)
    limited = text_pairs(rows, 1000)
    assert set(limited) < set(free)
    sizes = Counter(unit_of[id] for pair in limited for id in pair)
    assert MOST_OF_UNIT - 1 <= sizes["large"] <= MOST_OF_UNIT
