"""The regression check: what it compares, what it lets pass, what it refuses."""

import json

import polars as pl
import pytest

from harness.regress import Tolerance, accept, as_frame, compare
from harness.schema import TABLES, Control, Detection, Fidelity, Model
from harness.tables import read_table, write_tables
from hq.errors import HQError
from hq.stats import Estimate


def estimate(value):
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, n=100, seed=0)


def a_value(annotation, auroc):
    return {str: "fp16", int: 100, float: 0.25, Estimate: estimate(auroc)}[annotation]


def a_row(kind, auroc=0.8):
    return kind(**{n: a_value(f.annotation, auroc) for n, f in kind.model_fields.items()})


@pytest.fixture
def run(tmp_path):
    def make(name, auroc=0.8, fingerprint="abc"):
        tables = {
            name: [a_row(kind, auroc)]
            for name, kind in zip(TABLES, (Detection, Control, Fidelity, Model), strict=True)
        }
        folder = tmp_path / name
        write_tables(folder, tables, {"study": "s", "fingerprint": fingerprint})
        (folder / "neurons.json").write_text("{}")
        return folder

    return make


def test_a_run_agrees_with_itself(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    differences = compare(run("a"), tmp_path / "results")
    assert differences
    assert not any(d.regressed for d in differences)


def test_a_fall_regresses_and_a_rise_does_not(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    fallen = {d.column for d in compare(run("low", 0.7), tmp_path / "results") if d.regressed}
    risen = {d.column for d in compare(run("high", 0.9), tmp_path / "results") if d.regressed}
    assert {"auroc", "f1"} <= fallen
    assert "auroc" not in risen
    assert as_frame(compare(run("low", 0.7), tmp_path / "results"))["regressed"][0]


def test_nan_regresses():
    for worse in ("lower", "higher", "either"):
        assert Tolerance(within=1, worse=worse).exceeded(0.5, float("nan"))


def test_accept_keeps_tolerances_that_are_there(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    own = "[detection]\nauroc = {within = 0.5}\n"
    (tmp_path / "results" / "tolerances.toml").write_text(own)
    accept(run("low", 0.7), tmp_path / "results")
    assert (tmp_path / "results" / "tolerances.toml").read_text() == own
    assert [d.column for d in compare(run("a"), tmp_path / "results")] == ["auroc"]


def test_tables_come_back_as_written(run):
    frame = read_table(run("a"), "detection")
    assert frame["auroc"].to_list() == [0.8]
    assert frame["auroc_low"].to_list() == [0.7]


def test_refusals_are_sentences(run, tmp_path):
    good = run("a")
    with pytest.raises(HQError, match="no readable provenance"):
        compare(tmp_path / "nowhere", good)
    with pytest.raises(HQError, match=r"no tolerances\.toml"):
        compare(good, good)
    accept(good, tmp_path / "results")
    with pytest.raises(HQError, match="of model xyz"):
        compare(run("other", fingerprint="xyz"), tmp_path / "results")
    (tmp_path / "results" / "tolerances.toml").write_text("[detection]\nauroc = {within = -1}\n")
    with pytest.raises(HQError, match=r"detection\.auroc"):
        compare(good, tmp_path / "results")
    (tmp_path / "results" / "tolerances.toml").write_text("[detection]\nnothing = {within = 1}\n")
    with pytest.raises(HQError, match="no column 'nothing'"):
        compare(good, tmp_path / "results")


def test_precisions_that_only_one_side_ran_are_left_out(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    path = tmp_path / "results" / "detection.csv"
    frame = pl.read_csv(path)
    pl.concat([frame, frame.with_columns(precision=pl.lit("nf4"))]).write_csv(path)
    assert {d.row for d in compare(run("a"), tmp_path / "results")} == {"fp16", "fp16 fp16"}


def test_provenance_is_json(run):
    assert json.loads((run("a") / "provenance.json").read_text())["study"] == "s"
