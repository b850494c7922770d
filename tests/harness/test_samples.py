"""Samples that could leak are rejected: by `require_separate`, and by the commands that use them."""

import json
from pathlib import Path

import pytest

from harness.stages.samples import Sample, require_separate, samples_digest
from hq.errors import HQError


def _sample(id: str, fold: int, unit: str, **changes: object) -> Sample:
    number = sum(map(ord, id))
    values = {
        "id": id,
        "relation": "r",
        "question": f"What is {id}?",
        "text": f"It is {id}.",
        "answer": f"it is {id}",
        "hallucinated": False,
        "unit": unit,
        "fold": fold,
        "prompt_ids": (number,),
        "response_ids": (1,),
    }
    return Sample.model_validate(values | changes)


def _others(*folds: int) -> list[Sample]:
    """Unrelated samples, so that no unit holds more than 20%."""
    return [_sample(f"other {n}", folds[n % len(folds)], f"other {n}") for n in range(20)]


def test_separate_samples_pass() -> None:
    related = {"prompt_ids": (1,), "question": "Who?", "answer": "x"}
    require_separate(
        [
            _sample("a", 0, "a", **related),
            _sample("b", 0, "a", **related),  # one question twice, in one unit
            _sample("c", 1, "c", answer=""),
            _sample("d", 1, "d", answer="", question="?"),  # texts without words link nothing
            _sample("e", 1, "e", question="!"),
            *_others(0, 1),
        ]
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (_sample("a", 1, "b"), "'a' appears twice"),
        (_sample("a", 0, "a"), "'a' appears twice"),
        (_sample("b", 1, "a"), "unit 'a' appears in the folds 0"),
        (_sample("b", 1, "b", prompt_ids=(97,)), "have the same prompt"),
        (_sample("b", 0, "b", prompt_ids=(97,)), "have the same prompt"),
        (_sample("b", 1, "b", answer="It is a"), "have the same answer"),
        (_sample("b", 0, "b", answer="it is a"), "have the same answer"),
        (_sample("b", 1, "b", question="what is A"), "have the same question"),
    ],
)
def test_a_leak_is_an_error(other: Sample, words: str) -> None:
    with pytest.raises(HQError, match=words):
        require_separate([_sample("a", 0, "a"), other, *_others(0, 1)])


def test_a_large_unit_is_an_error() -> None:
    related = [_sample(f"a{n}", 0, "a", answer="yes") for n in range(6)]
    require_separate([*related[:5], *_others(0, 1)])
    with pytest.raises(HQError, match=r"holds 6 of the 26 .*more than 20%.* hold 6, 1, 1, 1, 1:"):
        require_separate([*related, *_others(0, 1)])


def test_the_digest_is_of_labels_units_folds_and_tokens_but_not_of_texts() -> None:
    sample = _sample("a", 0, "a")
    reworded = sample.model_copy(update={"text": "A", "answer": "a", "question": "?"})
    assert samples_digest([sample]) == samples_digest([reworded])
    for change in ({"fold": 1}, {"unit": "b"}, {"hallucinated": True}, {"response_ids": (2,)}):
        assert samples_digest([sample]) != samples_digest([sample.model_copy(update=change)])


@pytest.mark.parametrize("change", [{}, {"id": "copy"}, {"id": "copy", "unit": "copy"}])
def test_copied_rows_are_rejected_by_the_commands(change, finished, tiny_study, hq):
    rows = (finished / "runs" / "tiny" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    first = next(row for row in map(json.loads, rows) if row["fold"] == 0)
    copied = {**first, "fold": 1, **change}
    text = "\n".join([*rows, json.dumps(copied)])
    Path("samples.jsonl").write_text(text + "\n", encoding="utf-8")
    model = tiny_study.parent / "model"
    samples = ("--samples", "samples.jsonl")
    assert hq("trace", *samples, "--into", "fp16", "--model", model, "--quiet").code == 0
    identified = hq("identify", *samples, "--traces", "fp16", "--into", "found")
    assert identified.code == 2, identified
    assert "hq: The" in identified.err
    assert not Path("found").exists()
    neurons = finished / "runs" / "tiny" / "neurons.json"
    compared = hq(
        *("compare", *samples, "--neurons", neurons, "--reference", "fp16", "--variant", "fp16")
    )
    assert compared.code == 2
    assert compared.err == identified.err
