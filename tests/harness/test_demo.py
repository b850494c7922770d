"""`hq demo`: compare, gate and report of committed scores, without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from harness.check.gate import judge
from harness.demo import demo
from harness.demo.demo import COMMITTED, DATA, SCORED, write_run
from harness.tables.files import read_table


def test_the_demonstration_compares_checks_and_reports(hq, tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    ran = hq("demo", "--into", tmp_path / "new")
    assert ran.code == 0, ran.err
    assert "(the same samples): 0 regressed" in " ".join(ran.out.split())
    for name in ("report.html", "report.md", "detection.csv", *SCORED):
        assert (tmp_path / "new" / name).is_file()
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "Detection rate by false-alarm rate" in page
    assert len(page) < 5e6
    again = hq("demo", "--into", tmp_path / "new")
    assert (again.code, "exists" in again.err) == (2, True)


def test_it_runs_without_torch(tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    script = (
        "import sys\nfrom harness.cli import main\n"
        "sys.argv = ['hq', 'demo', '--into', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "new")]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr


def test_its_tables_are_those_of_the_scores():
    lines = (DATA / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    y = np.array([sample["hallucinated"] for sample in samples])
    folds = np.array([sample["fold"] for sample in samples])
    table, scores = read_table(COMMITTED, "detection"), read_table(DATA, "scores")
    assert table["precision"].to_list() == scores["precision"].unique(maintain_order=True).to_list()
    for row in table.iter_rows(named=True):
        of = scores.filter(precision=row["precision"])
        assert of["sample"].to_list() == [sample["id"] for sample in samples]
        values, entropy = (of[name].to_numpy() for name in ("score", "entropy"))
        for name, value in (("auroc", values), ("auroc_entropy", entropy)):
            areas = [roc_auc_score(y[folds == k], value[folds == k]) for k in range(5)]
            pairs = [y[folds == k].sum() * (~y[folds == k]).sum() for k in range(5)]
            assert row[name] == pytest.approx(np.average(areas, weights=pairs), abs=1e-5)
        assert row["n"] == len(y)


def test_changed_scores_are_degraded(tmp_path, monkeypatch):
    broken = tmp_path / "data"
    shutil.copytree(DATA, broken)
    scores = pl.read_csv(broken / "scores.csv")
    noise = pl.Series(np.random.default_rng(0).normal(size=len(scores)) * 2)
    of_nf4 = pl.when(pl.col("precision") == "nf4").then(pl.col("score") + noise)
    scores.with_columns(of_nf4.otherwise("score").alias("score")).write_csv(broken / "scores.csv")
    monkeypatch.setattr(demo, "DATA", broken)
    write_run(tmp_path / "run")
    verdicts = {
        group.name: str(group.verdict) for group in judge(tmp_path / "run", COMMITTED).groups
    }
    assert verdicts["nf4"] == "degraded"
    assert verdicts["fp16"] == "pass"
