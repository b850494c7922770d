"""Stage `sample`: what is kept does not depend on what was given up, nor on being killed."""

import pytest

from harness.judges import Verdict, judge
from harness.pipeline import Pipeline
from harness.progress import Progress
from harness.stages import sample as stage
from harness.stages.sample import Judged, Record, collect, read_records, retain
from harness.store import Store
from harness.study import REFERENCE, Study
from hq.sampling import Sampling

SETTINGS = Sampling(responses=4, temperature=0.03, max_new_tokens=8, seed=3)


@pytest.fixture(scope="module")
def parts(tiny_study):
    """A decoding, questions half of which the model can answer, and what ends a response."""
    loaded = Study.load(str(tiny_study))
    with Pipeline(loaded, Store(tiny_study.parent), Progress(quiet=True)) as pipeline:
        yield pipeline.backend(REFERENCE).decoding(), pipeline.prompted[:200], pipeline.ending


def run(folder, parts, quota=1000):
    decoding, prompted, ending = parts
    folder.mkdir(exist_ok=True)
    with (
        Progress(quiet=True) as progress,
        progress.task("sample", len(prompted), "questions") as task,
    ):
        collect(folder, decoding, prompted, SETTINGS, ending, judge("rules"), quota, task)
    return read_records(folder)


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
    (tmp_path / "torn" / "responses.draft.jsonl").write_bytes(
        b"".join(lines[40:90]) + lines[90][:25]
    )
    run(tmp_path / "torn", parts)
    assert (tmp_path / "torn" / "responses.jsonl").read_bytes() == whole


def test_records_stand_in_the_order_of_the_questions(parts, tmp_path):
    assert list(run(tmp_path / "run", parts)) == [p.question.id for p in parts[1]]


def record(*verdicts: Verdict, complete: bool = True) -> Record:
    responses = tuple(
        Judged(text=f"text {i}", ids=(i,), verdict=verdict, count=1 + i)
        for i, verdict in enumerate(verdicts)
    )
    return Record(id="q", prompt=(1,), responses=responses, complete=complete, generated=9, naive=9)


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
