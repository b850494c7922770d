"""Bad input, through the command line: one sentence, exit code 2, and nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def weights(study: Path) -> Path:
    return study.parent / "model" / "model.safetensors"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def with_nan(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})


def pickle_only(path: Path) -> None:
    path.rename(path.with_name("pytorch_model.bin"))


def drop_a_weight(path: Path) -> None:
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def never_right(study: Path) -> None:
    path = study.parent / "questions.jsonl"
    rows = [json.loads(line) | {"aliases": ["never"]} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(study: Path, **changes: object) -> None:
    path = study.parent / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


STUDIES = {
    "an unknown key": (lambda s: edit(s, 'name = "tiny"', 'name = "tiny"\nmodle = 1'), "modle"),
    "broken TOML": (lambda s: edit(s, "name = ", "name "), "not valid TOML"),
    "an unknown precision": (lambda s: edit(s, '"nf4"', '"nf5"'), "did you mean 'nf4'"),
    "an unknown scenario": (lambda s: edit(s, '"triviaqa"', '"trivia"'), "did you mean 'triviaqa'"),
    "an unknown prompt form": (
        lambda s: edit(s, '"few-shot"', '"fewshot"'),
        "did you mean 'few-shot'",
    ),
    "an unknown judge": (lambda s: edit(s, "quota = 60", 'quota = 60, judge = "rule"'), "'rules'"),
    "fractions past 1": (lambda s: edit(s, "train = 0.5", "train = 0.9"), "add up to 1"),
    "a value out of range": (lambda s: edit(s, "responses = 3", "responses = 0"), "responses"),
    "no chat template": (
        lambda s: edit(s, 'form = "few-shot", shots = [["a", "b"], ["c", "d"]]', 'form = "chat"'),
        "no chat template",
    ),
    "no such model": (lambda s: shutil.rmtree(s.parent / "model"), "neither a folder"),
    "pickled weights only": (lambda s: pickle_only(weights(s)), "safetensors"),
    "truncated weights": (lambda s: truncate(weights(s)), "no whole safetensors"),
    "a missing weight": (lambda s: drop_a_weight(weights(s)), "down_proj"),
    "NaN in the weights": (lambda s: with_nan(weights(s)), "not finite"),
    "an unknown architecture": (lambda s: config(s, model_type="bloom"), "'bloom' is not known"),
    "no question file": (lambda s: (s.parent / "questions.jsonl").unlink(), "questions.jsonl"),
    "an empty question file": (
        lambda s: (s.parent / "questions.jsonl").write_text(""),
        "holds no questions",
    ),
    "a question that is no JSON": (
        lambda s: (s.parent / "questions.jsonl").write_text("{"),
        "line 1",
    ),
    "one class only": (never_right, "consistently right"),
}


def is_one_sentence(outcome, words: str) -> None:
    lines = [line for line in outcome.err.splitlines() if not line.startswith(("sample", "trace"))]
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("hq: ")
    assert lines[0].endswith((".", "?"))
    assert words.lower() in lines[0].lower()


@pytest.mark.parametrize("case", STUDIES)
def test_a_bad_study_is_refused(case, own_study, hq):
    damage, words = STUDIES[case]
    damage(own_study)
    is_one_sentence(hq("study", "run", own_study), words)
    assert not Path("runs").exists()


def test_no_such_study(hq):
    is_one_sentence(hq("study", "run", "nowhere.toml"), "no study 'nowhere.toml'")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no samples file"), ("", "is empty"), ("{}\n", "Line 1"), ("garbage\n", "Line 1")],
)
def test_bad_samples(content, words, tiny_study, hq):
    if content is not None:
        Path("samples.jsonl").write_text(content)
    model = tiny_study.parent / "model"
    outcome = hq("trace", "--samples", "samples.jsonl", "--into", "traces", "--model", model)
    is_one_sentence(outcome, words)
    assert not Path("traces").exists()


@pytest.fixture
def traces(finished, tiny_study, hq):
    """A folder of FP16 traces, with the options that name them and their samples."""
    samples = finished / "runs" / "tiny" / "samples.jsonl"
    model = tiny_study.parent / "model"
    assert hq("trace", "--samples", samples, "--into", "fp16", "--model", model).code == 0
    return samples


def compare(hq, samples, neurons):
    return hq(
        *("compare", "--samples", samples, "--neurons", neurons),
        *("--reference", "fp16", "--variant", "fp16"),
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"fingerprint": "', '"fingerprint": "0', "fingerprint"),
        ('"schema_version": 1', '"schema_version": 9', "schema version 9"),
        ('"intercept": ', '"intercept": x', "not valid JSON"),
    ],
)
def test_another_neuron_set(old, new, words, traces, finished, hq):
    shutil.copy(finished / "runs" / "tiny" / "neurons.json", "neurons.json")
    edit(Path("neurons.json"), old, new)
    is_one_sentence(compare(hq, traces, "neurons.json"), words)


def test_traces_of_other_tokens(traces, finished, hq):
    lines = traces.read_text().splitlines(keepends=True)
    Path("fewer.jsonl").write_text("".join(lines[:-1]))
    outcome = hq("identify", "--samples", "fewer.jsonl", "--traces", "fp16", "--into", "found")
    is_one_sentence(outcome, "other token ids")


def test_damaged_traces(traces, hq):
    truncate(Path("fp16/sum.answer.npy"))
    outcome = hq("identify", "--samples", traces, "--traces", "fp16", "--into", "found")
    is_one_sentence(outcome, "sum.answer.npy")


def test_nan_in_traces(traces, hq):
    array = np.load("fp16/sum.answer.npy")
    array[0, 0, 0] = np.nan
    np.save("fp16/sum.answer.npy", array)
    where = ("--samples", traces, "--traces", "fp16", "--into", "found")
    outcome = hq("identify", *where, "--folds", 2, "--max-fraction", 0.1)
    is_one_sentence(outcome, "NaN")


def test_no_traces(traces, hq):
    outcome = hq("identify", "--samples", traces, "--traces", "nowhere", "--into", "found")
    is_one_sentence(outcome, "no finished trace")


def test_an_unknown_measure(traces, hq):
    outcome = hq("trace", "--samples", traces, "--into", "x", "--measures", "sums")
    is_one_sentence(outcome, "no measure 'sums'")


def test_check_of_nothing(hq):
    is_one_sentence(hq("check", "runs/none", "--against", "results"), "provenance.json")


def test_an_unknown_bench(hq):
    is_one_sentence(hq("bench", "cetts"), "did you mean 'cett'")
