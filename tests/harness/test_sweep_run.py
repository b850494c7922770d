"""`hq sweep` on the tiny study: its tables, its log, kills, and what it refuses."""

import json
import shutil
import signal

import pytest

from harness.experiments.sweep.section import SweepSection
from harness.experiments.sweep.tables import TABLES
from harness.tables.files import read_table
from hq.errors import HQError
from tests.harness.killing import Killer, needs_sigkill

FILES = [f"{name}.csv" for name in TABLES] + ["tables.md", "provenance.json"]
SMALL = ("--trials", "8", "--draws", "2", "--alphas", "0,1,3", "--quiet")


@pytest.fixture
def sources(tmp_path):
    """Files of two scenarios that a model of letters can be put to, as options."""
    rows = {
        "falseqa": [{"question": f"Why is {i} odd?", "false_premise": 1} for i in range(20)],
        "jailbreak": [{"prompt": f"Do {i}."} for i in range(20)],
    }
    options = ["--scenarios", "falseqa,jailbreak"]
    for name, lines in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        options += ["--source", f"{name}={path}"]
    return options


@pytest.fixture
def few_shot(tiny_study, finished, tmp_path):
    """The tiny study with prompts for a model without a chat template, its stages done."""
    path = tmp_path / "study.toml"
    path.write_text(
        tiny_study.read_text(encoding="utf-8") + 'sweep = {form = "few-shot", questions = 16}\n',
        encoding="utf-8",
    )
    shutil.copytree(finished / "cache", tmp_path / "cache")
    return path


def test_a_sweep_leaves_its_tables(hq, few_shot, sources, tmp_path):
    ran = hq("sweep", few_shot, *sources, *SMALL, "--precisions", "fp16,nf4")
    assert ran.code == 0, ran.err
    assert "H-Neurons scaled by α" in ran.out
    run = tmp_path / "runs" / "tiny-sweep"
    rates = read_table(run, "rates")
    assert rates.height == 2 * 2 * (3 + 3)
    at_one = rates.filter(rates["alpha"] == 1)
    assert (at_one["changed"] == 0).all()
    both = at_one.pivot("neurons", index=["precision", "scenario"], values="rate")
    assert (both["h"] == both["matched"]).all()  # nothing is scaled
    slopes = read_table(run, "slopes")
    assert slopes["precision"].to_list() == ["fp16", "fp16", "nf4", "nf4"]
    assert slopes.filter(slopes["precision"] == "fp16")["change"].to_list() == [0, 0]
    costs = read_table(run, "costs")
    assert costs["alpha"].to_list() == [0, 1, 3] * 2
    assert costs["perplexity"].n_unique() == 6
    outputs = [
        json.loads(line)
        for line in (run / "outputs.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(outputs) == 2 * 2 * 3 * 8
    assert {o["outcome"] for o in outputs} <= {"complied", "resisted", "unclear"}

    before = {name: (run / name).read_bytes() for name in FILES}
    assert hq("sweep", few_shot, *sources, *SMALL, "--precisions", "fp16,nf4").code == 0
    assert {name: (run / name).read_bytes() for name in FILES} == before
    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0
    worse = (tmp_path / "results" / "slopes.csv").read_text(encoding="utf-8").splitlines()
    cells = worse[1].split(",")
    cells[worse[0].split(",").index("slope")] = "1"
    worse[1] = ",".join(cells)
    (tmp_path / "results" / "slopes.csv").write_text("\n".join(worse) + "\n", encoding="utf-8")
    checked = hq("check", run, "--against", tmp_path / "results")
    assert checked.code == 1
    assert "slope" in checked.out
    assert hq("check", tmp_path / "results", "--against", finished_study(tmp_path)).code == 2


def finished_study(folder):
    """A folder that holds another kind of run."""
    other = folder / "other"
    shutil.copytree(folder / "results", other)
    facts = json.loads((other / "provenance.json").read_text(encoding="utf-8"))
    (other / "provenance.json").write_text(json.dumps(facts | {"kind": "study"}), encoding="utf-8")
    return other


@needs_sigkill
def test_a_killed_sweep_goes_on_and_asks_nothing_twice(
    hq, few_shot, sources, tmp_path, monkeypatch
):
    """The same command after kill -9 leaves the same files as a run that was not killed."""
    command = ["sweep", str(few_shot), *sources, *SMALL, "--precisions", "fp16", "--into"]
    other, whole, killed = (tmp_path / name for name in ("other", "whole", "killed"))
    shutil.copytree(tmp_path / "cache", other)
    with Killer(tmp_path) as killer:
        code = killer.run("harness.stages.respond append", 4, *command, killed)
    assert code == -signal.SIGKILL
    assert not killed.exists()
    assert hq(*command, killed).code == 0
    monkeypatch.setenv("HQ_CACHE", str(other))
    assert hq(*command, whole).code == 0
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    logs = [
        sorted(path.read_text(encoding="utf-8").splitlines()) for path in _logs(tmp_path / "cache")
    ]
    assert any(logs)
    assert logs == [sorted(path.read_text(encoding="utf-8").splitlines()) for path in _logs(other)]


def _logs(cache):
    return sorted((cache / "store").glob("replies-*/log.jsonl"))


@pytest.mark.parametrize(
    ("alphas", "controls"),
    [
        ({}, (0, 1, 3)),
        ({"alphas": (2, 0, 1, 0.5)}, (0, 1, 2)),
        ({"alphas": (1, 2, 4, 8)}, (1, 2, 4, 8)),
        ({"alphas": (0, 0.5, 1, 2), "control_alphas": (0, 0.5, 1)}, (0, 0.5, 1)),
    ],
)
def test_controls_follow_the_alphas(alphas, controls):
    assert SweepSection.of(alphas, "the options").control_alphas == controls


def test_controls_at_an_alpha_that_is_not_swept_are_refused():
    with pytest.raises(HQError, match="3 is not among alphas"):
        SweepSection.of({"alphas": (0, 1, 2), "control_alphas": (0, 1, 3)}, "the options")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--scenarios", "falsqa"), "did you mean 'falseqa'"),
        (("--alphas", "0,0.5"), "1 among them"),
        (("--alphas", "0,1,nan"), "alphas"),
        (("--alphas", "-1,1,2"), "alphas"),
        (("--alphas", "0,1,two"), "alphas"),
        (("--source", "falseqa"), "write SCENARIO=FILE"),
        (
            ("--source", "falseqa=none.jsonl", "--scenarios", "falseqa"),
            "There is no file none.jsonl",
        ),
        (("--precisions", "nf5"), "did you mean 'nf4'"),
    ],
)
def test_bad_options_are_one_sentence(hq, few_shot, options, sentence):
    refused = hq("sweep", few_shot, "--quiet", *options)
    assert refused.code == 2
    assert sentence in refused.err
    assert "Traceback" not in refused.err


def test_a_dry_run_says_how_many_and_how_long(hq, few_shot, sources, tmp_path):
    said = hq("sweep", few_shot, *sources, *SMALL, "--precisions", "fp16,nf4", "--dry-run")
    assert said.code == 0, said.err
    # 16 trials × (3 α + 2 draws × 2 α), and 16 questions × 3 α, at each precision
    assert f"{2 * (16 * 7 + 16 * 3)} responses" in said.out
    assert "minutes" in said.out
    assert not (tmp_path / "runs").exists()
