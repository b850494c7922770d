"""Which questions are kept: balance, order, and that stopping early changes nothing."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from harness.stages.samples import Candidate, pairs

streams = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60).map(
    lambda rows: [Candidate(str(i), group, label) for i, (group, label) in enumerate(rows)]
)


@given(streams, st.integers(1, 40))
def test_every_group_has_as_many_right_as_hallucinated(stream, quota):
    by_id = {c.id: c for c in stream}
    kept = [by_id[id] for pair in pairs(stream, quota) for id in pair]
    counts = Counter((c.group, c.hallucinated) for c in kept)
    assert all(counts[group, True] == counts[group, False] for group in "abc")
    assert len({c.id for c in kept}) == len(kept)
    assert len(kept) <= 2 * quota


@given(streams, st.integers(1, 10))
def test_what_is_kept_is_settled_by_the_questions_up_to_the_quota(stream, quota):
    whole = pairs(stream, quota)
    for stop in range(len(stream) + 1):
        if len(pairs(stream[:stop], quota)) == quota:
            assert pairs(stream[:stop], quota) == whole
            break
    else:
        assert len(whole) < quota


@given(streams)
def test_no_pair_is_missed(stream):
    counts = Counter((c.group, c.hallucinated) for c in stream)
    possible = sum(min(counts[g, True], counts[g, False]) for g in "abc")
    assert len(pairs(stream, len(stream) + 1)) == possible


def test_pairs_name_the_right_answer_first():
    stream = [Candidate("wrong", 0, True), Candidate("right", 0, False)]
    assert pairs(stream, 1) == [("right", "wrong")]
