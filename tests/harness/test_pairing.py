"""Which questions are kept: balance, order, and that stopping early changes nothing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges.base import Question, Verdict
from harness.judges.text import normalise
from harness.stages.sample import JudgedResponse, QuestionRecord, candidates
from harness.stages.samples import Candidate, Prompted, pairs
from harness.studies.study import Balance

streams = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60).map(
    lambda rows: [Candidate(str(i), group, label) for i, (group, label) in enumerate(rows)]
)
BALANCES: list[Balance] = ["answer", "relation"]
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
    by_relation = pairs(candidates(prompted, records, "relation"), len(rows))
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
