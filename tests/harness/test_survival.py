"""`hq survival` on the tiny study."""

import shutil

import pytest

from harness.experiments.survival.tables import TABLES
from harness.stages.samples import read_samples
from harness.tables.files import read_table
from hq.probe.survival import STATISTICS


@pytest.fixture
def stages(finished, tmp_path):
    shutil.copytree(finished / "cache", tmp_path / "cache")


@pytest.mark.usefixtures("stages")
def test_survival_leaves_its_tables(hq, tiny_study, tmp_path, finished):
    options = ("survival", tiny_study, "--precisions", "fp16,int8,nf4", "--quiet")
    ran = hq(*options)
    assert ran.code == 0, ran.err
    assert "predicted from FP16 alone" in ran.out
    run = tmp_path / "runs" / "tiny-survival"
    rows = read_table(run, "survival")
    assert rows.select("target", "precision").rows() == [
        (target, precision) for target in ("error", "rank") for precision in ("int8", "nf4")
    ]
    assert rows["layers"].to_list() == [3] * 4
    samples = read_samples(finished / "runs" / "tiny" / "samples.jsonl")
    assert rows["texts"].to_list() == [sum(s.fold % 2 for s in samples)] * 4
    assert ((rows["hurt"] - rows["n"] / 4).abs() <= 3).all()  # ranks of few texts tie
    assert ((rows["auroc_low"] <= rows["auroc"]) & (rows["auroc"] <= rows["auroc_high"])).all()
    gain = rows["auroc"] - rows["auroc_small"]
    assert rows["gain"].to_list() == pytest.approx(gain.to_list(), abs=1e-5)
    assert read_table(run, "statistics").height == 2 * len(STATISTICS)

    files = [f"{name}.csv" for name in TABLES] + ["tables.md", "provenance.json"]
    before = {name: (run / name).read_bytes() for name in files}
    assert '"survival"' in hq(*options, "--json").out
    assert {name: (run / name).read_bytes() for name in files} == before
    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0
    more = hq("survival", tiny_study, "--precisions", "fp16,int8,nf4,fp4", "--quiet")
    assert more.code == 0, more.err
    learnt_otherwise = hq("check", run, "--against", tmp_path / "results")
    assert learnt_otherwise.code == 6
    assert "learnt_from" in learnt_otherwise.out


@pytest.mark.usefixtures("stages")
def test_one_precision_has_no_others_to_learn_from(hq, tiny_study, tmp_path):
    ran = hq("survival", tiny_study, "--precisions", "fp16,nf4", "--quiet")
    assert ran.code == 2
    assert "give two or more besides fp16" in ran.err
    assert not (tmp_path / "runs").exists()
