"""Bad input, through the command line: one sentence, exit code 2, and nothing half-written."""

import errno
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from harness.cli import main
from harness.models import requirements


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


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
    rows = [
        json.loads(line) | {"aliases": [f"never {i}"]}
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def always_one_answer(study: Path) -> None:
    path = study.parent / "questions.jsonl"
    rows = [
        json.loads(line) | {"aliases": ["yes"]}
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config(study: Path, **changes: object) -> None:
    path = study.parent / "model" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )


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
    "a reserve of everything": (
        lambda s: edit(s, 'name = "tiny"', 'name = "tiny"\nreserve = {held_out = 0.98}'),
        "reserve: calibration and held_out add up to 1",
    ),
    "the splits of an older study": (
        lambda s: s.write_text(
            s.read_text(encoding="utf-8") + "[split]\ntrain = 0.5\n", encoding="utf-8"
        ),
        "'split'",
    ),
    "a value out of range": (lambda s: edit(s, "responses = 3", "responses = 0"), "responses"),
    "no chat template": (
        lambda s: edit(s, 'form = "few-shot", shots = [["a", "b"], ["c", "d"]]', 'form = "chat"'),
        "no chat template",
    ),
    "no such model": (lambda s: shutil.rmtree(s.parent / "model"), "neither a local folder"),
    "pickled weights only": (lambda s: pickle_only(weights(s)), "safetensors"),
    "truncated weights": (lambda s: truncate(weights(s)), "not a complete safetensors"),
    "a missing weight": (lambda s: drop_a_weight(weights(s)), "down_proj"),
    "NaN in the weights": (lambda s: with_nan(weights(s)), "not finite"),
    "a state-space model": (lambda s: config(s, model_type="mamba"), "carry a state"),
    "a model without room for the prompts": (
        lambda s: config(s, max_position_embeddings=60),
        "and room for 8 new ones, but model takes at most 60",
    ),
    "no question file": (lambda s: (s.parent / "questions.jsonl").unlink(), "questions.jsonl"),
    "an empty question file": (
        lambda s: (s.parent / "questions.jsonl").write_text("", encoding="utf-8"),
        "holds no questions",
    ),
    "a question that is no JSON": (
        lambda s: (s.parent / "questions.jsonl").write_text("{", encoding="utf-8"),
        "line 1",
    ),
    "a question file that is no text": (
        lambda s: (s.parent / "questions.jsonl").write_bytes(b'{"question": "\xff"}\n'),
        "line 1",
    ),
    "one answer to all questions": (
        always_one_answer,
        "No question is reserved as held-out, of 401 in 1 groups",
    ),
    "one class only": (never_right, "consistently right"),
    "a study that is no text": (lambda s: s.write_bytes(b"\xff\xfe"), "not valid TOML"),
    "a negative seed": (lambda s: edit(s, 'name = "tiny"', 'name = "tiny"\nseed = -1'), "seed"),
    "an unknown option of a scenario": (lambda s: edit(s, "source =", "sauce ="), "sauce"),
    "an option of another type": (lambda s: edit(s, "source =", "limit = 'x', source ="), "limit"),
    "no questions wanted": (lambda s: edit(s, "source =", "limit = 0, source ="), "limit"),
    "no tokenizer": (
        lambda s: [path.unlink() for path in (s.parent / "model").glob("token*")],
        "The tokenizer in",
    ),
    "a broken tokenizer": (
        lambda s: (s.parent / "model" / "tokenizer.json").write_text("{", encoding="utf-8"),
        "The tokenizer in",
    ),
    "a broken generation config": (
        lambda s: (s.parent / "model" / "generation_config.json").write_text("{", encoding="utf-8"),
        "generation_config.json cannot be read",
    ),
    "a broken config": (
        lambda s: (s.parent / "model" / "config.json").write_text("{", encoding="utf-8"),
        "config.json cannot be read",
    ),
    "weights of another shape": (lambda s: config(s, intermediate_size=192), "cannot be loaded"),
    "no held-out text": (
        lambda s: edit(s, "text_tokens = 64", 'text_tokens = 64, text = "nowhere.txt"'),
        "nowhere.txt",
    ),
    "labels against themselves": (
        lambda s: edit(s, "folds = 3", 'folds = 3, tokens = "other", labels = "3-vs-1"'),
        "labels: 3-vs-1 compares the chosen tokens with",
    ),
    "too many folds": (lambda s: edit(s, "folds = 3", "folds = 99"), "99 folds"),
    "two folds": (lambda s: edit(s, "folds = 3", "folds = 2"), "greater than or equal to 3"),
}


PROGRESS = (
    "map fp16",
    "sample responses",
    "logits fp16",
    "logits nf4",
    "trace fp16",
    "trace nf4",
    "identify fp16",
)


def is_one_sentence(outcome, words: str) -> None:
    lines = [line for line in outcome.err.splitlines() if not line.startswith(PROGRESS)]
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


SWEEPS = {
    "an unknown scenario": (("--scenarios", "falsqa"), "did you mean 'falseqa'"),
    "a source of an unknown scenario": (("--source", "falsqa=x.jsonl"), "did you mean 'falseqa'"),
    "a source of a scenario that is not swept": (
        ("--scenarios", "falseqa", "--source", "jailbreak=rows.jsonl"),
        "'jailbreak', which is not among",
    ),
    "a source that is not there": (
        ("--scenarios", "falseqa", "--source", "falseqa=nowhere.jsonl"),
        "no file nowhere.jsonl",
    ),
    "a source without a name": (("--source", "rows.jsonl"), "SCENARIO=FILE"),
    "two sources of one scenario": (
        ("--source", "falseqa=rows.jsonl", "--source", "falseqa=x.jsonl"),
        "falseqa twice",
    ),
    "alphas without 1": (("--alphas", "0,2,3"), "1 among them"),
    "alphas that are no numbers": (("--alphas", "0,one,2"), "alphas"),
    "a chat template that is not there": (
        ("--scenarios", "falseqa", "--source", "falseqa=rows.jsonl"),
        "no chat template",
    ),
}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("case", SWEEPS)
def test_a_bad_sweep_is_refused_before_anything_is_sampled(case, dry, tiny_study, hq):
    options, words = SWEEPS[case]
    rows = [{"question": f"Why is {i} odd?", "false_premise": 1} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    outcome = hq("sweep", tiny_study, *options, *dry)
    is_one_sentence(outcome, words)
    assert "sample responses" not in outcome.err
    assert not Path("runs").exists()


LATE = {
    "no text to calibrate with": (
        '"fp16", "gptq-4"]\npack = {text = "nowhere.txt"}',
        "calibration text nowhere.txt cannot be read",
    ),
    "no checkpoint": ('"fp16", "gptq-4"]\ncheckpoints = {gptq-4 = "nowhere"}', "nowhere"),
    "no GGUF file": ('"fp16", "gguf-source"]', "not a GGUF file"),
}


@pytest.mark.parametrize("command", [("study", "run"), ("survival",)])
@pytest.mark.parametrize("case", LATE)
def test_what_a_precision_needs_is_asked_for_first(case, command, own_study, hq, monkeypatch):
    monkeypatch.setattr(requirements, "installed_version", lambda package: "1.0")
    precisions, words = LATE[case]
    edit(own_study, '"fp16", "nf4"]', precisions.replace('"fp16"', '"fp16", "nf4"'))
    outcome = hq(*command, own_study)
    is_one_sentence(outcome, words)
    assert "sample responses" not in outcome.err


def test_a_missing_package_is_named_first(own_study, hq, monkeypatch):
    monkeypatch.setattr(
        requirements, "installed_version", lambda p: "" if p == "bitsandbytes" else "1.0"
    )
    outcome = hq("study", "run", own_study)
    is_one_sentence(outcome, "'nf4' needs bitsandbytes: pip install 'hq[bnb]'")
    assert "sample responses" not in outcome.err


def test_a_sweep_of_few_scenarios_leaves_the_studys_other_files_alone(own_study, hq):
    text = own_study.read_text(encoding="utf-8")
    sources = 'sweep = {sources = {jailbreak = "x.jsonl"}}\n'
    own_study.write_text(text + sources, encoding="utf-8")
    rows = [{"question": f"Why is {i} odd?", "false_premise": 1} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    is_one_sentence(hq("sweep", own_study, "--scenarios", "falseqa"), "chat template")


def test_a_lone_surrogate_is_a_sentence(own_study, hq):
    path = own_study.parent / "questions.jsonl"
    path.write_text('{"question": "Who is \\ud800?", "aliases": ["x"]}\n', encoding="utf-8")
    is_one_sentence(hq("study", "run", own_study), "lone surrogate")


def test_a_file_where_a_folder_should_be(tiny_study, hq, monkeypatch):
    Path("file").write_text("", encoding="utf-8")
    is_one_sentence(hq("study", "run", "--into", "file", tiny_study), "file is a file")
    monkeypatch.setenv("HQ_CACHE", "file")
    is_one_sentence(hq("study", "run", tiny_study), "cannot be used")


@pytest.mark.parametrize("precisions", ["", "fp16,", "fp6"])
def test_precisions_that_do_not_exist(precisions, tiny_study, hq):
    outcome = hq("study", "run", tiny_study, "--precisions", precisions)
    is_one_sentence(outcome, "no precision")


def test_no_such_study(hq):
    is_one_sentence(hq("study", "run", "nowhere.toml"), "no study 'nowhere.toml'")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no samples file"),
        (b"", "is empty"),
        (b"{}\n", "Line 1"),
        (b"garbage\n", "Line 1"),
        (b"\xff\n", "Line 1"),
    ],
)
def test_bad_samples(content, words, tiny_study, hq):
    if content is not None:
        Path("samples.jsonl").write_bytes(content)
    model = tiny_study.parent / "model"
    outcome = hq("trace", "--samples", "samples.jsonl", "--into", "traces", "--model", model)
    is_one_sentence(outcome, words)
    assert not Path("traces").exists()


@pytest.mark.parametrize(
    ("ids", "words"), [([-1], "response_ids"), ([99999], "outside the"), ([], "a token each")]
)
def test_tokens_that_no_model_has(ids, words, finished, tiny_study, hq):
    first = (
        (finished / "runs" / "tiny" / "samples.jsonl").read_text(encoding="utf-8").splitlines()[0]
    )
    Path("samples.jsonl").write_text(
        json.dumps(json.loads(first) | {"response_ids": ids}) + "\n", encoding="utf-8"
    )
    model = tiny_study.parent / "model"
    outcome = hq("trace", "--samples", "samples.jsonl", "--into", "traces", "--model", model)
    is_one_sentence(outcome, words)


@pytest.fixture(scope="module")
def traced(finished, tiny_study, tmp_path_factory):
    """A folder of FP16 traces, read only, and the samples that it holds."""
    folder = tmp_path_factory.mktemp("traced") / "fp16"
    samples = finished / "runs" / "tiny" / "samples.jsonl"
    options = ("--samples", samples, "--into", folder, "--model", tiny_study.parent / "model")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["hq", "trace", *map(str, options), "--quiet"])
        main()
    assert not stop.value.code
    return folder, samples


@pytest.fixture
def traces(traced, hq):
    """The samples, where the current folder holds their traces in `fp16`."""
    folder, samples = traced
    shutil.copytree(folder, "fp16")
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
        ('"schema_version": 2', '"schema_version": 9', "schema version 9"),
        ('"intercept": ', '"intercept": x', "not valid JSON"),
    ],
)
def test_another_neuron_set(old, new, words, traces, finished, hq):
    shutil.copy(finished / "runs" / "tiny" / "neurons.json", "neurons.json")
    edit(Path("neurons.json"), old, new)
    is_one_sentence(compare(hq, traces, "neurons.json"), words)


def test_a_neuron_set_without_the_settings_of_its_fit(traces, finished, hq):
    stated = json.loads((finished / "runs" / "tiny" / "neurons.json").read_text(encoding="utf-8"))
    Path("neurons.json").write_text(json.dumps(stated | {"provenance": {}}), encoding="utf-8")
    is_one_sentence(compare(hq, traces, "neurons.json"), "folds, repeats and max_fraction")


def two_files(finished: Path) -> tuple[Path, Path]:
    """Copies of the neurons and of the probes of the finished run, in the current folder."""
    for name in ("neurons.json", "probes.json"):
        shutil.copy(finished / "runs" / "tiny" / name, name)
    return Path("neurons.json"), Path("probes.json")


def without_threshold(path: Path) -> None:
    stated = json.loads(path.read_text(encoding="utf-8"))
    stated["folds"][0]["probe"]["thresholds"] = {}
    path.write_text(json.dumps(stated), encoding="utf-8")


def of_another_fit(path: Path) -> None:
    stated = json.loads(path.read_text(encoding="utf-8"))
    stated["neurons"]["intercept"] += 1
    path.write_text(json.dumps(stated), encoding="utf-8")


def without_a_fold(path: Path) -> None:
    stated = json.loads(path.read_text(encoding="utf-8"))
    stated["folds"].pop()
    path.write_text(json.dumps(stated), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "probes.json does not hold the probes of a cross-fit"),
        (truncate, "probes.json does not hold the probes of a cross-fit"),
        (without_a_fold, "probes.json does not hold the probes of a cross-fit"),
        (without_threshold, "A probe has no threshold 'youden'"),
        (lambda path: edit(path, '"fingerprint": "', '"fingerprint": "0'), "fingerprint"),
        (of_another_fit, "are of different fits"),
    ],
    ids=["missing", "truncated", "a fold missing", "no threshold", "another model", "another fit"],
)
def test_bad_probes(damage, words, traces, finished, hq):
    neurons, probes = two_files(finished)
    damage(probes)
    is_one_sentence(compare(hq, traces, neurons), words)


def test_samples_of_an_older_version(traces, finished, hq):
    """They have splits and components instead of folds and units."""
    rows = [json.loads(line) for line in traces.read_text(encoding="utf-8").splitlines()]
    lines = [
        {k: v for k, v in row.items() if k not in ("unit", "fold", "question", "answer")}
        | {"split": "test", "component": row["unit"]}
        for row in rows
    ]
    Path("old.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines), encoding="utf-8")
    neurons = finished / "runs" / "tiny" / "neurons.json"
    where = ("--samples", "old.jsonl", "--traces", "fp16", "--into", "found")
    for outcome in (hq("identify", *where), compare(hq, "old.jsonl", neurons)):
        is_one_sentence(outcome, "Line 1 of old.jsonl is not a sample: question: Field required")
    assert not Path("found").exists()


def test_traces_of_another_model(traces, finished, hq):
    neurons = finished / "runs" / "tiny" / "neurons.json"
    shutil.copytree("fp16", "other")
    edit(Path("other/trace.json"), '"fingerprint": "', '"fingerprint": "0')
    outcome = hq(
        *("compare", "--samples", traces, "--neurons", neurons),
        *("--reference", "fp16", "--variant", "other"),
    )
    is_one_sentence(outcome, "that other is compared by belongs to")


def test_samples_in_other_folds(traces, finished, hq):
    """A sample must not be scored by a probe that was fitted on it."""
    samples = [json.loads(line) for line in traces.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(s | {"fold": (s["fold"] + 1) % 3}) + "\n" for s in samples]
    Path("turned.jsonl").write_text("".join(lines), encoding="utf-8")
    outcome = compare(hq, "turned.jsonl", finished / "runs" / "tiny" / "neurons.json")
    is_one_sentence(outcome, "in other folds")


def test_reference_and_variant_swapped(traces, finished, hq):
    shutil.copytree("fp16", "nf4")
    edit(Path("nf4/trace.json"), '"precision": "fp16"', '"precision": "nf4"')
    outcome = hq(
        *("compare", "--samples", traces, "--reference", "nf4", "--variant", "fp16"),
        *("--neurons", finished / "runs" / "tiny" / "neurons.json"),
    )
    is_one_sentence(outcome, "nf4 holds traces at nf4")


def test_a_full_disk(tiny_study, hq, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")  # as numpy says it, without a file

    monkeypatch.setattr("harness.store.runner.Runner.run", full)
    is_one_sentence(hq("study", "run", tiny_study), "No space is left")


def test_an_error_of_the_system_that_names_no_file(tiny_study, hq, monkeypatch):
    def broken(*_):
        raise OSError("something is wrong")

    monkeypatch.setattr("harness.store.runner.Runner.run", broken)
    is_one_sentence(hq("study", "run", tiny_study), "something is wrong")


def test_the_beginning_of_another_trace(traces, tiny_study, hq):
    Path("fp16/trace.json").rename("fp16/trace.draft.json")
    where = ("--samples", traces, "--into", "fp16", "--model", tiny_study.parent / "model")
    is_one_sentence(hq("trace", *where, "--precision", "nf4"), "beginning of another trace")


def test_traces_of_other_tokens(traces, finished, hq):
    lines = traces.read_text(encoding="utf-8").splitlines(keepends=True)
    Path("fewer.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    outcome = hq("identify", "--samples", "fewer.jsonl", "--traces", "fp16", "--into", "found")
    is_one_sentence(outcome, "other token ids")
    assert not Path("found").exists()


def test_damaged_traces(traces, hq):
    truncate(Path("fp16/sum.answer.npy"))
    outcome = hq("identify", "--samples", traces, "--traces", "fp16", "--into", "found")
    is_one_sentence(outcome, "sum.answer.npy")
    assert not Path("found").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-fraction", 5), ("--repeats", 0), ("--cett", "sum,output"), ("--labels", "2-vs-1")],
)
def test_options_that_cannot_be(option, value, traces, hq):
    outcome = hq(
        *("identify", "--samples", traces, "--traces", "fp16", "--into", "found", option, value)
    )
    is_one_sentence(
        outcome, f"In the options and the folds of the samples, {option[2:].replace('-', '_')}"
    )
    assert not Path("found").exists()


def test_nan_in_traces(traces, hq):
    array = np.load("fp16/sum.answer.npy")
    array[:, 0, 0] = np.nan
    np.save("fp16/sum.answer.npy", array)
    where = ("--samples", traces, "--traces", "fp16", "--into", "found")
    outcome = hq("identify", *where, "--max-fraction", 0.1)
    is_one_sentence(outcome, "NaN")


def test_no_traces(traces, hq):
    outcome = hq("identify", "--samples", traces, "--traces", "nowhere", "--into", "found")
    is_one_sentence(outcome, "no finished trace")


def test_an_unknown_measure(traces, hq):
    outcome = hq("trace", "--samples", traces, "--into", "x", "--measures", "sums")
    is_one_sentence(outcome, "no measure 'sums'")


def test_check_of_nothing(hq):
    is_one_sentence(hq("check", "runs/none", "--against", "results"), "provenance.json")
    outcome = hq("check", "runs/none", "--against", "results", "--accept")
    is_one_sentence(outcome, "provenance.json")
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[", "not valid TOML"),
        (b"\xff", "not valid TOML"),
        (b"[detect]\nauroc = {within = 1}", "table 'detect'"),
        (b"[detection]\naurocc = {within = 1}", "column 'aurocc'"),
        (b"[detection]\nauroc = {within = -1}", "greater than or equal to 0"),
        (b"[detection]\ncompute = {within = 1}", "'float32' in column 'compute'"),
        (None, "no tolerances.toml"),
    ],
)
def test_bad_tolerances(content, words, finished, hq):
    run, path = finished / "runs" / "tiny", Path("results/tolerances.toml")
    assert hq("check", run, "--against", "results", "--accept").code == 0
    path.unlink() if content is None else path.write_bytes(content)
    is_one_sentence(hq("check", run, "--against", "results"), words)


def test_a_table_with_a_hole(finished, hq):
    run, path = finished / "runs" / "tiny", Path("results/detection.csv")
    assert hq("check", run, "--against", "results", "--accept").code == 0
    pl.read_csv(path).with_columns(auroc=None).write_csv(path)
    checked = hq("check", run, "--against", "results")
    assert checked.code == 6
    assert "detection.auroc of fp16 could not be compared: it is empty in results." in checked.out


def test_a_picture_of_nothing_and_in_no_format(finished, hq):
    pytest.importorskip("altair")
    is_one_sentence(hq("picture", "nowhere", "--into", "a.svg"), "no detection.csv")
    is_one_sentence(hq("picture", finished / "runs" / "tiny", "--into", "a.xyz"), "a.xyz")


def test_an_unknown_bench(hq):
    is_one_sentence(hq("bench", "cetts"), "did you mean 'cett'")


def test_an_error_of_the_system_names_the_node(tiny_study, hq, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("harness.stages.mapping.build", full)
    is_one_sentence(hq("study", "run", tiny_study), "another disk's folder (node: map fp16)")
