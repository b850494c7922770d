"""A fault in a backend turns the gate red; another seed of the draws does not."""

import json
import shutil
from functools import cached_property
from pathlib import Path

import pytest

from harness.experiments.detect import experiment
from harness.store.store import read_record
from hq.backends.transformers.backend import TorchBackend
from hq.gguf.file import GGUFFile

FAULTY_LAYER = 1


@pytest.fixture
def study(hq, tiny_study, finished, tmp_path):
    """Runs the tiny study with the finished nodes, and commits what the first call computes.

    120 samples cannot rule out a loss of 0.02, so the margin is wider.
    """
    shutil.copytree(finished / "cache", tmp_path / "cache")

    def run(*options):
        ran = hq("study", "run", tiny_study, "--quiet", *options)
        assert ran.code == 0, ran.err
        path = Path("results/tolerances.toml")
        if not path.exists():
            assert hq("check", "runs/tiny", "--against", "results", "--accept").code == 0
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("margin = 0.02", "margin = 0.1"), encoding="utf-8")

    return run


def verdicts(hq):
    """The exit code, the verdict of each precision, and the columns that regressed."""
    checked = hq("check", "runs/tiny", "--against", "results", "--json")
    report = json.loads(checked.out)
    columns = {(row["table"], row["column"]) for row in report["regressed"]}
    return checked.code, {g["precision"]: g["verdict"] for g in report["precisions"]}, columns


def forget_traces(precision):
    """Remove the traces of a precision, so that they are computed again."""
    for folder in Path("cache/store").glob("trace-*"):
        if folder.is_dir() and read_record(folder)["node"] == f"trace {precision}":
            shutil.rmtree(folder)
            return
    raise AssertionError(precision)


def break_norms(monkeypatch, backend, name):
    """Multiply the norms of every second neuron of a layer by 10."""
    healthy = vars(backend)[name].func

    def norms(self):
        found = healthy(self)
        found[FAULTY_LAYER][::2] *= 10
        return found

    broken = cached_property(norms)
    broken.__set_name__(backend, name)
    monkeypatch.setattr(backend, name, broken)


def test_wrong_norms_in_torch_are_seen(hq, study, monkeypatch):
    study()
    assert verdicts(hq) == (0, dict.fromkeys(("study", "fp16", "nf4"), "pass"), set())
    forget_traces("nf4")
    break_norms(monkeypatch, TorchBackend, "_norms")
    study()
    code, found, columns = verdicts(hq)
    assert (code, found) == (4, {"study": "pass", "fp16": "pass", "nf4": "degraded"})
    assert ("fidelity", "rank_change") in columns


def test_wrong_norms_in_llama_cpp_are_seen(hq, study, monkeypatch):
    pytest.importorskip("llama_cpp")
    options = ("--precisions", "fp16,gguf-q8_0")
    study(*options)
    forget_traces("gguf-q8_0")
    break_norms(monkeypatch, GGUFFile, "norms")
    study(*options)
    code, found, columns = verdicts(hq)
    assert (code, found) == (4, {"study": "pass", "fp16": "pass", "gguf-q8_0": "degraded"})
    assert ("fidelity", "rank_change") in columns


def test_other_seeds_of_the_draws_pass(hq, study, monkeypatch):
    """The tolerances of controls are for the default number of draws; the tiny study has 3."""
    options = ("--precisions", "fp16", "--set", "compare.draws=20")
    study(*options)
    healthy = experiment.Comparison
    for seed in range(1, 6):
        monkeypatch.setattr(
            experiment, "Comparison", lambda *, _s=seed, **parts: healthy(**parts | {"seed": _s})
        )
        study(*options)
        assert verdicts(hq) == (0, {"study": "pass", "fp16": "pass"}, set()), seed
