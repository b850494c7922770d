"""Stage `sample`: the samples do not depend on early stopping, or on where a run was killed."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from harness.judges.base import Verdict
from harness.judges.registry import make_judge
from harness.judges.text import normalise
from harness.stages import sample as stage
from harness.stages.materials import Materials
from harness.stages.sample import (
    JudgedResponse,
    LocalSampler,
    QuestionRecord,
    asked_digest,
    collect,
    design_digest,
    read_records,
    write_records,
)
from harness.stages.select import retain
from harness.store.progress import Progress
from harness.studies.study import REFERENCE, Study
from hq.errors import HQError
from hq.tracing.sampling import Sampling

SETTINGS = Sampling(responses=4, temperature=0.03, max_new_tokens=8, seed=3)


@pytest.fixture(scope="module")
def parts(tiny_study):
    """A decoding, questions half of which the model can answer, and the stop criteria."""
    loaded = Study.load(str(tiny_study))
    with Materials(loaded) as m:
        yield m.models.open(REFERENCE).decoding(), m.prompted[:200], m.stop_criteria


def run(folder, parts, quota=1000, log=None, balance="text"):
    """The records of a run; with a `log`, one that other runs share."""
    decoding, prompted, ending = parts
    folder.mkdir(exist_ok=True)
    log = log or folder / "log.jsonl"
    with (
        Progress(quiet=True) as progress,
        progress.task("sample", len(prompted), "questions") as task,
    ):
        judge = make_judge("rules")
        sampler = LocalSampler(lambda: decoding, prompted, SETTINGS, ending, judge)
        records = collect(log, sampler, prompted, judge, quota, balance, task)
    write_records(folder, records)
    return read_records(folder)


def kept(folder, parts, quota=1000, balance="text"):
    return retain(folder, parts[1], quota, balance, folds=2, seed=0)


class Counting:
    """A decoding that counts the batches that it starts."""

    def __init__(self, decoding):
        self.decoding, self.started = decoding, 0

    def share(self, prompts):
        self.decoding.share(prompts)

    def start(self, prompts):
        self.started += 1
        return self.decoding.start(prompts)

    def step(self, parents, tokens):
        return self.decoding.step(parents, tokens)


def test_giving_up_early_keeps_what_full_sampling_keeps(parts, tmp_path, monkeypatch):
    early = run(tmp_path / "early", parts)
    monkeypatch.setattr(stage, "consistency", lambda *_: lambda tree: True)
    full = run(tmp_path / "full", parts)
    assert all(record.complete for record in full.values())
    assert not all(record.complete for record in early.values())
    assert sum(r.generated for r in early.values()) < sum(r.generated for r in full.values())
    assert kept(tmp_path / "early", parts) == kept(tmp_path / "full", parts)
    assert len(kept(tmp_path / "early", parts)) > 10


def test_the_quota_ends_sampling_and_changes_nothing_before_it(parts, tmp_path, monkeypatch):
    balance, quota = "answer", 5
    monkeypatch.setattr(stage, "CHUNK", 30)
    monkeypatch.setattr("harness.stages.units.LARGEST_UNIT", 1)  # few of its answers repeat
    everything = run(tmp_path / "all", parts, balance=balance)
    some = run(tmp_path / "some", parts, quota=quota, balance=balance)
    assert len(some) < len(everything)
    assert some == {id: everything[id] for id in some}
    samples = kept(tmp_path / "some", parts, quota, balance)
    assert samples == kept(tmp_path / "all", parts, quota, balance)
    assert len(samples) == 2 * quota


def test_text_pairs_are_of_the_questions_that_the_quota_takes(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CHUNK", 30)
    everything = run(tmp_path / "all", parts)
    some = run(tmp_path / "some", parts, quota=12)
    assert len(some) < len(everything)
    assert some == {id: everything[id] for id in some}
    samples = kept(tmp_path / "some", parts, quota=12)
    assert {s.id for s in samples} <= set(some)
    cells = Counter((s.relation, s.fold, s.hallucinated) for s in samples)
    assert all(
        cells[relation, fold, not label] == n for (relation, fold, label), n in cells.items()
    )


def test_a_large_unit_is_an_error_that_states_the_sizes(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.stages.units.LARGEST_UNIT", 0.01)
    run(tmp_path / "all", parts)
    with pytest.raises(HQError, match=r"One unit .* more than 1%, and the largest units hold \d+,"):
        kept(tmp_path / "all", parts)


def test_reserved_questions_are_not_asked(parts, tmp_path):
    _, prompted, _ = parts
    reserved = [p.question.id for p in prompted if p.part != "sample"]
    assert reserved
    assert not set(reserved) & set(run(tmp_path / "run", parts))


def test_samples_state_question_answer_unit_and_fold(parts, tmp_path):
    run(tmp_path / "run", parts)
    questions = {p.question.id: p.question.question for p in parts[1]}
    samples = kept(tmp_path / "run", parts)
    assert all(s.question == questions[s.id] for s in samples)
    assert all(s.answer == normalise(s.text) for s in samples)
    assert {s.fold for s in samples} == {0, 1}
    assert len({(s.unit, s.fold) for s in samples}) == len({s.unit for s in samples})
    units_of_answer = {(s.answer, s.unit) for s in samples}
    assert len(units_of_answer) == len({answer for answer, _ in units_of_answer})


def test_other_entities_and_relations_keep_the_log_but_not_the_design(parts):
    prompted = parts[1]
    for change in ({"entities": ("other",)}, {"relation": "other"}):
        changed = [
            p.model_copy(update={"question": replace(p.question, **change)}) for p in prompted
        ]
        assert asked_digest(changed) == asked_digest(prompted)
        assert design_digest(changed) != design_digest(prompted)
    for change in ({"question": "Who?"}, {"aliases": ("y",)}, {"distractors": ("y",)}):
        first = prompted[0].model_copy(update={"question": replace(prompted[0].question, **change)})
        assert asked_digest([first, *prompted[1:]]) != asked_digest(prompted)


def test_a_torn_draft_goes_on_and_ends_with_the_same_bytes(parts, tmp_path):
    run(tmp_path / "whole", parts)
    whole = (tmp_path / "whole" / "responses.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "torn").mkdir()
    log = tmp_path / "torn" / "log.jsonl"
    log.write_bytes(b"".join(lines[40:90]) + lines[90][:25])
    run(tmp_path / "torn", parts)
    assert (tmp_path / "torn" / "responses.jsonl").read_bytes() == whole
    assert all(json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())


def test_another_quota_balance_or_reserve_continues_the_same_log(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CHUNK", 30)
    decoding, prompted, ending = parts
    more_reserved = [p.model_copy(update={"part": "held-out"}) for p in prompted[:40]]
    fresh, log = Counting(decoding), tmp_path / "log.jsonl"
    all_at_once = run(tmp_path / "all", (fresh, prompted, ending))
    shared = Counting(decoding)
    few = run(tmp_path / "few", (shared, prompted, ending), quota=3, log=log)
    so_far = shared.started
    assert 0 < so_far < fresh.started
    assert run(tmp_path / "more", (shared, prompted, ending), log=log) == all_at_once
    assert shared.started == fresh.started
    # Records in the log need no model, and equal those of a run of its own.
    again = (None, prompted, ending)
    assert run(tmp_path / "again", again, quota=3, log=log) == few
    assert run(tmp_path / "balance", again, log=log, balance="answer") == all_at_once
    other = (None, more_reserved + prompted[40:], ending)
    unreserved = [p.question.id for p in other[1] if p.part == "sample"]
    assert run(tmp_path / "reserve", other, log=log) == {id: all_at_once[id] for id in unreserved}
    for one, other in (("again", "few"), ("more", "all")):
        name = "responses.jsonl"
        assert (tmp_path / one / name).read_bytes() == (tmp_path / other / name).read_bytes()


def test_text_with_any_line_separator_comes_back(tmp_path):
    odd = record(Verdict.RIGHT)
    odd = odd.model_copy(
        update={"responses": (odd.responses[0].model_copy(update={"text": "a\u2028b\x85c\n"}),)}
    )
    write_records(tmp_path, [odd])
    assert read_records(tmp_path) == {"q": odd}


def test_records_stand_in_the_order_of_the_questions(parts, tmp_path):
    asked = [p.question.id for p in parts[1] if p.part == "sample"]
    assert list(run(tmp_path / "run", parts)) == asked


def record(*verdicts: Verdict, complete: bool = True) -> QuestionRecord:
    responses = tuple(
        JudgedResponse(text=f"text {i}", ids=(i,), verdict=verdict, count=1 + i)
        for i, verdict in enumerate(verdicts)
    )
    return QuestionRecord(
        id="q", prompt=(1,), responses=responses, complete=complete, generated=9, naive=9
    )


@pytest.mark.parametrize(
    ("verdicts", "label"),
    [
        ((Verdict.RIGHT, Verdict.RIGHT), False),
        ((Verdict.WRONG, Verdict.WRONG), True),
        ((Verdict.RIGHT, Verdict.WRONG), None),
        ((Verdict.WRONG, Verdict.UNCERTAIN), None),
        ((Verdict.WRONG, Verdict.CUT), None),
        ((Verdict.CUT,), None),
    ],
)
def test_only_the_consistent_are_labelled(verdicts, label):
    assert record(*verdicts).hallucinated is label
    assert record(*verdicts, complete=False).hallucinated is None


def test_the_typical_response_is_the_most_frequent():
    assert record(Verdict.RIGHT, Verdict.RIGHT, Verdict.RIGHT).typical.text == "text 2"
