"""Studies whose traces read the model layer by layer: same tables, resumed, planned, refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.stages.materials import Materials
from harness.store import environment
from harness.studies.study import Study
from tests.harness.conftest import Outcome

CLI = Callable[..., Outcome]
VOLATILE = ("speed.csv",)  # tokens per second


def test_the_tables_are_those_of_the_model_in_memory(
    hq: CLI, tiny_study: Path, finished: Path, tmp_path: Path
) -> None:
    assert hq("run", tiny_study, "--stream", "--into", tmp_path / "tables", "--quiet").code == 0
    expected = sorted((finished / "runs" / "tiny").glob("*.csv"))
    assert expected
    for file in expected:
        if file.name not in VOLATILE:
            assert (tmp_path / "tables" / file.name).read_bytes() == file.read_bytes(), file.name
    assert not list((tmp_path / "cache" / "streamed").rglob("*.npy"))


def test_the_setting_is_no_part_of_keys(
    hq: CLI, tiny_study: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HQ_CACHE", str(finished / "cache"))
    nodes = json.loads(hq("plan", tiny_study, "--stream", "--json").out)["nodes"]
    assert {node["state"] for node in nodes} == {"there"}


def test_the_plan_says_what_is_read_layer_by_layer(hq: CLI, tiny_study: Path) -> None:
    planned = json.loads(hq("plan", tiny_study, "--stream", "--json").out)["streaming"]
    assert "nodes read it layer by layer; these need all of it: sample" in planned["sentence"]
    assert set(planned["costs"]) == {"this CPU", "one 24 GB GPU", "one 80 GB GPU"}
    shown = " ".join(hq("plan", tiny_study, "--stream").out.split())
    assert "layer by layer on memory GPU memory read PFLOP hours" in shown


def test_a_model_that_fits_has_no_sentence(hq: CLI, tiny_study: Path) -> None:
    planned = json.loads(hq("plan", tiny_study, "--json").out)["streaming"]
    assert planned == {"sentence": "", "costs": {}}


def test_a_model_that_does_not_fit_is_streamed(
    hq: CLI, tiny_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: Memory())
    planned = json.loads(hq("plan", tiny_study, "--json").out)["streaming"]
    assert "and 0.0 GiB are available: 6 of" in planned["sentence"]
    never = hq("plan", tiny_study, "--json", "--set", "stream=never").out
    assert "no node reads it layer by layer" in json.loads(never)["streaming"]["sentence"]


def test_a_loaded_model_does_not_change_what_is_streamed(
    tiny_study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Materials(Study.load(str(tiny_study))) as m:
        declared = {precision: m.models.streams(precision) for precision in ("fp16", "nf4")}
        assert declared == {"fp16": False, "nf4": False}
        monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: Memory())
        assert {precision: m.models.streams(precision) for precision in declared} == declared
        assert not caplog.messages
        assert m.models.streams("int8")
        assert m.models.streams("int8")
    (said,) = caplog.messages
    assert "at int8 takes" in said
    assert "read it layer by layer" in said


class Memory:
    """A full machine."""

    available = 1000


def test_a_calibrated_precision_is_rejected_in_one_sentence(hq: CLI, tiny_study: Path) -> None:
    result = hq("run", tiny_study, "--stream", "--precisions", "fp16,gguf-q8_0")
    assert result.code == 2
    assert "gguf-q8_0 cannot be traced layer by layer" in " ".join(result.err.split())
