"""`hq run --against`: refused before anything is computed, or checked afterwards."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def results(hq, finished):
    """The tables of the finished tiny study, committed."""
    assert hq("check", finished / "runs" / "tiny", "--against", "results", "--accept").code == 0
    return Path("results")


def test_a_design_that_cannot_decide_does_not_run(hq, tiny_study, results):
    ran = hq("run", tiny_study, "--against", results, "--quiet")
    assert ran.code == 5
    (fp16, nf4) = ran.err.strip().splitlines()
    assert "nf4: results cannot decide: the smallest change of detection.auroc" in nf4
    assert "at 120 samples in 64 units, and the margin is 0.02: " in nf4
    assert "fp16: results cannot decide" in fp16
    assert not list(Path("cache").rglob("node.json"))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precisions", "fp16,fp4"), "fp4: results has no rows of fp4: accept a run of"),
        (("--set", "seed=1"), "definition.seed is 1, not 0"),
        (("-e", "drift"), "kind is 'drift', not 'detect'"),
    ],
)
def test_what_cannot_be_compared_does_not_run(options, words, hq, tiny_study, results):
    ran = hq("run", tiny_study, *options, "--against", results, "--quiet")
    assert ran.code == 6
    assert words in ran.err
    assert not list(Path("cache").rglob("node.json"))


def test_no_committed_tables_are_bad_input(hq, tiny_study):
    ran = hq("run", tiny_study, "--against", "nowhere", "--quiet")
    assert ran.code == 2
    assert "no readable provenance.json" in ran.err


def test_a_run_is_checked(hq, tiny_study, finished, results, tmp_path):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    path = results / "tolerances.toml"
    text = path.read_text(encoding="utf-8").replace("margin = 0.02", "margin = 0.1")
    path.write_text(text, encoding="utf-8")
    ran = hq("run", tiny_study, "--against", results, "--quiet", "--json")
    assert ran.code == 0, ran.err
    gate = json.loads(ran.out)["gate"]
    assert (gate["verdict"], gate["same_samples"], gate["regressed"]) == ("pass", True, [])
    lower = (
        (results / "model.csv").read_text(encoding="utf-8").replace("float32,32.0", "float32,31.0")
    )
    (results / "model.csv").write_text(lower, encoding="utf-8")
    ran = hq("run", tiny_study, "--against", results, "--quiet")
    assert ran.code == 4
    assert "fp16: degraded: model.bits_per_weight of fp16 is 32; committed is 31" in ran.out
