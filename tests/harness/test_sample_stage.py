"""Stage `sample`: what is kept does not depend on what was given up, nor on being killed."""

import json

import pytest

from harness.judges.base import Verdict
from harness.judges.registry import make_judge
from harness.stages import sample as stage
from harness.stages.materials import Materials
from harness.stages.sample import (
    JudgedResponse,
    QuestionRecord,
    collect,
    read_records,
    retain,
    write_records,
)
from harness.store.progress import Progress
from harness.studies.study import REFERENCE, Study
from hq.tracing.sampling import Sampling

SETTINGS = Sampling(responses=4, temperature=0.03, max_new_tokens=8, seed=3)


@pytest.fixture(scope="module")
def parts(tiny_study):
    """A decoding, questions half of which the model can answer, and what ends a response."""
    loaded = Study.load(str(tiny_study))
    with Materials(loaded) as m:
        yield m.models.open(REFERENCE).decoding(), m.prompted[:200], m.stop_criteria


def run(folder, parts, quota=1000, log=None):
    """The records of a run; with a `log`, one that other runs share."""
    decoding, prompted, ending = parts
    folder.mkdir(exist_ok=True)
    log = log or folder / "log.jsonl"
    with (
        Progress(quiet=True) as progress,
        progress.task("sample", len(prompted), "questions") as task,
    ):
        found = collect(
            log, lambda: decoding, prompted, SETTINGS, ending, make_judge("rules"), quota, task
        )
    write_records(folder, found)
    return read_records(folder)


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
    kept = retain(tmp_path / "early", parts[1], 1000)
    assert kept == retain(tmp_path / "full", parts[1], 1000)
    assert len(kept) > 10


def test_the_quota_ends_sampling_and_changes_nothing_before_it(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CHUNK", 30)
    everything = run(tmp_path / "all", parts)
    some = run(tmp_path / "some", parts, quota=3)
    assert len(some) < len(everything)
    assert some == {id: everything[id] for id in some}
    assert retain(tmp_path / "some", parts[1], 3) == retain(tmp_path / "all", parts[1], 3)


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


def test_another_quota_or_split_goes_on_from_the_same_log(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CHUNK", 30)
    decoding, prompted, ending = parts
    resplit = [p.model_copy(update={"split": "train"}) for p in prompted]
    fresh, log = Counting(decoding), tmp_path / "log.jsonl"
    all_at_once = run(tmp_path / "all", (fresh, prompted, ending))
    shared = Counting(decoding)
    few = run(tmp_path / "few", (shared, prompted, ending), quota=3, log=log)
    so_far = shared.started
    assert 0 < so_far < fresh.started
    assert run(tmp_path / "more", (shared, prompted, ending), log=log) == all_at_once
    assert shared.started == fresh.started
    # What is there already needs no model, and says the same as if it had been asked alone.
    again = (None, prompted, ending)
    assert run(tmp_path / "again", again, quota=3, log=log) == few
    assert run(tmp_path / "other", (None, resplit, ending), log=log) == all_at_once
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
    assert list(run(tmp_path / "run", parts)) == [p.question.id for p in parts[1]]


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
