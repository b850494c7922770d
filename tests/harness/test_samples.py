"""Samples whose splits leak are refused: by `require_separate`, and by the commands that use them."""

import json
from pathlib import Path

import pytest

from harness.stages.samples import Sample, require_separate
from hq.errors import HQError


def _sample(id: str, split: str, component: str, prompt: tuple[int, ...]) -> Sample:
    return Sample.model_validate(
        {
            "id": id,
            "relation": "r",
            "split": split,
            "component": component,
            "hallucinated": False,
            "text": "x",
            "prompt_ids": prompt,
            "response_ids": (1,),
        }
    )


def test_separate_samples_pass() -> None:
    require_separate(
        [
            _sample("a", "train", "a", (1,)),
            _sample("b", "train", "a", (1,)),  # one question twice, in one component
            _sample("c", "test", "c", (2,)),
        ]
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (("a", "test", "b", (2,)), "'a' appears twice"),
        (("a", "train", "a", (1,)), "'a' appears twice"),
        (("b", "test", "a", (2,)), "component 'a' appears in the splits train"),
        (("b", "test", "b", (1,)), "have the same prompt"),
        (("b", "train", "b", (1,)), "have the same prompt"),
    ],
)
def test_a_leak_is_an_error(other: tuple[str, str, str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(HQError, match=words):
        require_separate([_sample("a", "train", "a", (1,)), _sample(*other)])


@pytest.mark.parametrize("change", [{}, {"id": "copy"}, {"id": "copy", "component": "copy"}])
def test_copied_test_rows_are_refused_by_the_commands(change, finished, tiny_study, hq):
    rows = (finished / "runs" / "tiny" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    test = next(row for row in map(json.loads, rows) if row["split"] == "test")
    copied = {**test, "split": "train", **change}
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
