"""`hq responses export` and `--responses`: recorded responses give what sampling gives."""

import gzip
import json
import shutil
import signal
import struct
from pathlib import Path

import pytest

from harness.check.acceptance import accept
from harness.stages.materials import Materials
from harness.stages.recorded import load
from harness.studies.study import Study
from hq.errors import HQError
from tests.harness.killing import Killer, needs_sigkill
from tests.harness.test_study_run import REPEATABLE, stages

SAMPLED = ("sample", "responses")  # folders of the store that sampling leaves


@pytest.fixture(scope="module")
def unsampled(finished, tmp_path_factory):
    """The cache of the finished run, without the responses that it sampled."""
    cache = tmp_path_factory.mktemp("unsampled") / "cache"
    ignored = shutil.ignore_patterns(*(f"{name}-*" for name in SAMPLED))
    shutil.copytree(finished / "cache", cache, ignore=ignored)
    return cache


@pytest.fixture
def file(finished, tiny_study, hq, tmp_path, monkeypatch):
    """The responses of the finished run."""
    with monkeypatch.context() as patch:
        patch.setenv("HQ_CACHE", str(finished / "cache"))
        outcome = hq("responses", "export", tiny_study, "--into", tmp_path / "tiny.jsonl.gz")
    assert outcome.code == 0, outcome
    assert "Responses to " in outcome.err
    return tmp_path / "tiny.jsonl.gz"


def no_sampling(*_):
    raise AssertionError("the model was asked")


def lines_of(path):
    text = gzip.decompress(path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def rewrite(path, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def test_a_run_from_a_file_gives_the_bytes_of_sampling(
    finished, unsampled, tiny_study, hq, file, monkeypatch, tmp_path
):
    shutil.copytree(unsampled, tmp_path / "cache")
    monkeypatch.setattr("harness.stages.sample.sample", no_sampling)
    # Every other node is found in the store, because it depends on the contents of responses only.
    monkeypatch.setattr("harness.stages.loading.open_backend", no_sampling)
    assert hq("run", tiny_study, "--responses", file, "--into", "run").code == 0
    run, store = finished / "runs" / "tiny", tmp_path / "cache" / "store"
    for name in set(REPEATABLE) - {"provenance.json"}:
        assert (Path("run") / name).read_bytes() == (run / name).read_bytes(), name
    (recorded,) = stages(store) - stages(unsampled / "store")
    (sampled,) = (finished / "cache" / "store").glob("sample-*/responses.jsonl")
    assert (store / recorded / "responses.jsonl").read_bytes() == sampled.read_bytes()

    new, old = (
        json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        for folder in (Path("run"), run)
    )
    digest = new["sampling"].pop("responses_from_file")
    of_file = new["nodes"].pop("recorded fp16 responses")
    of_model = old["nodes"].pop("sample fp16")
    assert new == old
    assert of_file["parameters"]["file"] == digest
    assert of_file["outputs"] == of_model["outputs"]
    stated = of_file["parameters"]["responses"]
    assert stated["sampled"]["machine"] == of_model["parameters"]["responses"]["machine"]


def test_a_plan_says_that_the_responses_are_recorded(unsampled, tiny_study, hq, file, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(unsampled))
    plan = json.loads(hq("plan", tiny_study, "--responses", file, "--json").out)["nodes"]
    states = {node["node"]: (node["state"], node["units"]) for node in plan}
    assert states["recorded fp16 responses"] == ("missing", len(lines_of(file)) - 1)
    assert not [name for name in states if name.startswith("sample ")]
    without = json.loads(hq("plan", tiny_study, "--json").out)["nodes"]
    assert "sample fp16" in {node["node"] for node in without}


def test_an_export_has_equal_bytes_and_no_question_or_prompt(
    finished, tiny_study, hq, file, monkeypatch
):
    first = file.read_bytes()
    assert struct.unpack("<I", first[4:8]) == (0,)  # the time in the header
    monkeypatch.setenv("HQ_CACHE", str(finished / "cache"))
    assert hq("responses", "export", tiny_study, "--into", file).code == 0
    assert file.read_bytes() == first
    header, *lines = lines_of(file)
    assert header["questions"] == len(lines)
    assert set(lines[0]) == {"id", "asked", "responses", "complete", "generated", "naive"}
    assert "word 0" not in gzip.decompress(first).decode()
    again = hq("responses", "export", tiny_study, "--set", f"responses={file}", "--into", "x")
    assert again.code == 2
    assert not Path("x").exists()


def without(key):
    def change(lines):
        del lines[1][key]

    return change


def having(value, *path):
    def change(lines):
        place = lines
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def truncated_text(lines):
    lines[1]["responses"][0]["text"] += "x"


def dropped(lines):
    lines.pop(3)
    lines[0]["questions"] -= 1


def twice(lines):
    lines[2] = lines[1]


def unfinished(lines):
    verdicts = [{r["verdict"] for r in line["responses"]} for line in lines[1:]]
    line = lines[1 + verdicts.index({"wrong"})]
    line["responses"][0]["count"] -= 1
    line["complete"] = False


def other_verdict(lines):
    response = lines[1]["responses"][0]
    response["verdict"] = "right" if response["verdict"] == "wrong" else "wrong"


DAMAGES = [
    (having("elsewhere", 0, "format"), "does not begin with the header"),
    (having(2, 0, "version"), "has version 2 of the format, and this hq reads version 1"),
    (having("0" * 16, 0, "model"), "has responses of the model 0000000000000000, and model is"),
    (having("gguf-q8_0", 0, "precision"), "precision = 'gguf-q8_0', and the study has 'fp16'"),
    (having(0.5, 0, "sampling", "temperature"), "sampling.temperature = 0.5, and the study has"),
    (having(1, 0, "sampling", "seed"), "sampling.seed = 1, and the study has 0"),
    (having(["."], 0, "stop_strings"), r"stop_strings = \['.'\]"),
    (having("exact, version 1", 0, "judge"), "judge = 'exact, version 1', and the study has"),
    (having(7, 0, "questions"), "is truncated: it has 376 of 7 questions"),
    (having("q9999", 1, "id"), "'q9999', which is no question of the study"),
    (having("0" * 8, 1, "asked"), "with another wording, prompt or list of answers"),
    (having([9999], 1, "responses", 0, "ids"), "a token outside the vocabulary of"),
    (having([0], 1, "responses", 0, "ids"), "a response beyond its end"),
    (truncated_text, "which is not that of its tokens"),
    (having(9, 1, "responses", 0, "count"), "counts with the sum"),
    (having(0, 1, "responses", 0, "count"), "counts with the sum"),
    (unfinished, "counts with the sum 2, of 3 responses"),
    (other_verdict, r"to 'triviaqa:q\d+' (right|wrong), and rules, version \d+ calls it"),
    (dropped, r"has no responses to 'triviaqa:q\d+', which the study asks for sampling.quota = 60"),
    (twice, r"has the question 'triviaqa:q\d+' twice"),
    (without("naive"), r"Line 2 of .* is damaged \(naive: Field required\)"),
]


@pytest.mark.parametrize(("change", "why"), DAMAGES)
def test_a_file_that_does_not_fit_is_an_error_that_says_why(change, why, file, tiny_study):
    lines = lines_of(file)
    change(lines)
    rewrite(file, lines)
    with Materials(Study.load(str(tiny_study)).changed(responses=str(file))) as m:
        with pytest.raises(HQError, match=why) as refused:
            load(m)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda whole: None, "There is no file of responses"),
        (lambda whole: b"{}", "is not a gzip file"),
        (lambda whole: whole[:-900], "is truncated or damaged"),
        (lambda whole: whole[:90] + b"\x00" + whole[91:], "is truncated or damaged"),
        (lambda whole: gzip.compress(b""), "does not begin with the header"),
    ],
)
def test_a_damaged_file_ends_the_command_before_the_first_node(content, why, file, tiny_study, hq):
    damaged = content(file.read_bytes())
    file.unlink() if damaged is None else file.write_bytes(damaged)
    outcome = hq("run", tiny_study, "--responses", file)
    assert (outcome.code, outcome.out) == (2, "")
    assert why in outcome.err
    assert not Path("cache/store").exists()
    assert not Path("runs").exists()


def test_verdicts_of_a_language_model_are_taken_as_recorded(file, tiny_study):
    class Prompted:
        identity = label = "llm x at y"
        unclear = 0

        def judge(self, response, question, truncated):
            raise AssertionError("the judge was asked")

        def choose(self, prompt, words):
            raise AssertionError("the judge was asked")

    lines = lines_of(file)
    lines[0]["judge"] = Prompted.identity
    rewrite(file, lines)
    with Materials(Study.load(str(tiny_study)).changed(responses=str(file))) as m:
        vars(m)["judge"] = Prompted()
        assert [record.id for record in load(m).records] == [line["id"] for line in lines[1:]]


def test_a_smaller_quota_uses_a_part_of_the_file(file, tiny_study, monkeypatch):
    monkeypatch.setattr("harness.stages.sample.CHUNK", 30)
    study = Study.load(str(tiny_study)).changed(responses=str(file))
    with Materials(study) as m, Materials(study.overridden(["sampling.quota=12"])) as fewer:
        whole, part = load(m), load(fewer)
    assert len(part.records) < len(whole.records)
    assert part.records == whole.records[: len(part.records)]


@needs_sigkill
def test_a_killed_run_goes_on(finished, unsampled, tiny_study, file, hq, tmp_path):
    shutil.copytree(unsampled, tmp_path / "cache")
    store = tmp_path / "cache" / "store"
    arguments = ("run", tiny_study, "--responses", file, "--quiet")
    with Killer(tmp_path) as killer:
        assert killer.run("os rename", 1, *arguments) == -signal.SIGKILL
    (left,) = store.glob("recorded-*.partial/responses.jsonl")
    left.write_text("torn", encoding="utf-8")
    assert hq(*arguments).code == 0
    (output,) = store.glob("recorded-*/responses.jsonl")
    (sampled,) = (finished / "cache" / "store").glob("sample-*/responses.jsonl")
    assert output.read_bytes() == sampled.read_bytes()


def test_rows_of_a_sampled_run_are_kept_beside_those_from_a_file(
    finished, unsampled, tiny_study, hq, file, tmp_path
):
    shutil.copytree(unsampled, tmp_path / "cache")
    whole = finished / "runs" / "tiny"
    accept(whole, tmp_path / "results")
    chosen = ("--precisions", "fp16", "--into", "fp16")
    assert hq("run", tiny_study, "--responses", file, *chosen).code == 0
    accept(Path("fp16"), tmp_path / "results")
    for name in ("detection.csv", "controls.csv"):
        assert (tmp_path / "results" / name).read_bytes() == (whole / name).read_bytes()
    path = Path("fp16/provenance.json")
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["nodes"]["recorded fp16 responses"]["outputs"] = "0" * 16  # other responses
    path.write_text(json.dumps(facts), encoding="utf-8")
    accept(whole, tmp_path / "sampled")
    with pytest.raises(HQError, match=r"only one of them has nodes.recorded fp16 responses"):
        accept(Path("fp16"), tmp_path / "sampled")
