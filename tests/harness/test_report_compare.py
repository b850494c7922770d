"""What changed between two runs: paired by sample where that is possible, else by intervals."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

pytest.importorskip("altair")

from harness.report.compare import (
    comparison,
    have_same_samples,
    paired_changes,
    unpaired_changes,
    write_comparison,
)
from harness.report.run import RunFolder
from hq.errors import HQError
from tests.detect_runs import write_run
from tests.harness.test_report import read_lines, rewrite


@pytest.fixture
def two(finished, tmp_path):
    """A run, and a copy whose scores at NF4 are other ones."""
    for name in ("a", "b"):
        shutil.copytree(finished / "runs" / "tiny", tmp_path / name)
    path = tmp_path / "b" / "scores.csv"
    rng, lines = np.random.default_rng(0), path.read_text(encoding="utf-8").splitlines()
    changed = [lines[0]]
    for line in lines[1:]:
        precision, sample, score, *rest = line.split(",")
        moved = float(score) + (rng.normal() if precision == "nf4" else 0)
        changed.append(",".join([precision, sample, f"{moved:.6f}", *rest]))
    path.write_text("\n".join(changed) + "\n", encoding="utf-8")
    return RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")


def within_folds(scores):
    """The AUROC over pairs of one fold."""
    areas, weights = [], []
    for _, fold in scores.group_by("fold"):
        y = fold["hallucinated"].to_numpy()
        areas.append(roc_auc_score(y, fold["score"].to_numpy()))
        weights.append(y.sum() * (~y).sum())
    return np.average(areas, weights=weights)


def test_scores_of_the_same_samples_are_compared_in_pairs(two):
    a, b = two
    changes = {change.row: change for change in paired_changes(a, b)}
    assert set(changes) == {"fp16", "nf4"}
    assert changes["fp16"].change == changes["fp16"].low == changes["fp16"].high == 0
    areas = [within_folds(run.scores.filter(precision="nf4")) for run in (a, b)]
    nf4 = changes["nf4"]
    assert (nf4.before, nf4.after) == pytest.approx(areas)
    assert nf4.change == pytest.approx(areas[1] - areas[0])
    assert nf4.low < nf4.change < nf4.high
    page = comparison(a, b)
    assert "paired by sample" in " ".join(page.runs[0].part.answer)


def test_pairs_need_the_same_samples_units_and_folds(two):
    a, b = two
    assert have_same_samples(a, b)
    path = b.path / "samples.jsonl"
    lines = read_lines(path)
    lines[0]["fold"] = (lines[0]["fold"] + 1) % 3
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    other = RunFolder(b.path)
    assert not have_same_samples(a, other)
    assert list(paired_changes(a, other)) == []
    answer = " ".join(comparison(a, other).runs[0].part.answer)
    assert "unpaired, because the runs have other samples, units or folds" in answer


def test_independent_runs_are_compared_by_their_intervals(tmp_path):
    """Zou & Donner 2008: the ends of a symmetric interval combine as standard errors do."""
    for name in ("a", "b"):
        write_run(tmp_path / name)
    path = tmp_path / "b" / "detection.csv"
    text = path.read_text(encoding="utf-8").replace("0.805,0.795,0.815", "0.855,0.825,0.895")
    path.write_text(text, encoding="utf-8")
    a, b = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    changes = {(c.table, c.row, c.column): c for c in unpaired_changes(a, b)}
    nf4 = changes["detection", "nf4", "auroc"]
    assert nf4.change == pytest.approx(0.05)
    assert nf4.low == pytest.approx(0.05 - np.hypot(0.03, 0.01))
    assert nf4.high == pytest.approx(0.05 + np.hypot(0.04, 0.01))
    assert nf4.is_shown
    same = changes["detection", "int8", "auroc"]
    assert (same.change, same.low, same.high) == pytest.approx((0, -0.0141421, 0.0141421), abs=1e-6)
    answer = " ".join(comparison(a, b).runs[0].part.answer)
    assert "changed from A to B in 1 of 4 rows" in answer
    assert "at least one folder has no scores.csv" in answer


def test_verdicts_rows_and_provenance_that_differ_are_listed(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", precisions=("fp16", "nf4"))
    path = tmp_path / "b" / "detection.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("changed", "not decided at this n"), encoding="utf-8")
    write_comparison(tmp_path / "a", tmp_path / "b", tmp_path / "c.html")
    twin = (tmp_path / "c.md").read_text(encoding="utf-8")
    assert "| detection | nf4 | verdict | changed | not decided at this n |" in twin
    assert "`detection`: only A has `int8` and `gguf-q8_0`." in twin
    assert "definition.precisions is ['fp16', 'nf4'], not ['fp16', 'int8'" in twin


def test_runs_that_cannot_be_compared_are_rejected(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    for name in ("results.json", "provenance.json"):
        facts = json.loads((tmp_path / "b" / name).read_text(encoding="utf-8"))
        rewrite(tmp_path / "b" / name, facts | {"kind": "sweep"})
    with pytest.raises(HQError, match="compare runs of one kind"):
        write_comparison(tmp_path / "a", tmp_path / "b", tmp_path / "c.html")
    write_run(tmp_path / "c", precisions=("fp16",))
    for table in (tmp_path / "c").glob("*.csv"):
        header = table.read_text(encoding="utf-8").splitlines()[0]
        table.write_text(header + "\n", encoding="utf-8")
    with pytest.raises(HQError, match="no row with the same keys"):
        write_comparison(tmp_path / "a", tmp_path / "c", tmp_path / "d.html")
    assert not list(tmp_path.glob("*.html"))
