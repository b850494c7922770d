"""The release gate: verdicts, exit codes, designs, and reports."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from junitparser import Error, Failure, JUnitXml

from harness.check.design import designs
from harness.check.gate import judge
from harness.check.limits import parse_limits, read_limits
from harness.check.verdict import Verdict, worst
from harness.cli.drift import EXIT_CODES
from harness.experiments import EXPERIMENTS
from harness.stages.identify import NEURONS_FILE
from harness.tables.contents import NEURONS_FILE as STATED_FILE
from harness.tables.files import read_table
from hq.errors import HQError

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "smollm2-knowledge"
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/tolerances.toml"))
DETECT = [folder for folder in FOLDERS if (folder / "selection.csv").exists()]


@pytest.fixture
def run(tmp_path):
    """A copy of the committed default study, as a run that a test may change."""
    return Path(
        shutil.copytree(COMMITTED, tmp_path / "run", ignore=shutil.ignore_patterns("bundle"))
    )


@pytest.fixture
def committed(tmp_path):
    """Another copy, as committed tables that a test may change."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "committed"))


def change(folder, table, column, by, **where):
    """Add a number to some cells of a column and of its interval."""
    path = folder / f"{table}.csv"
    frame = pl.read_csv(path, infer_schema_length=None)
    chosen = pl.all_horizontal(pl.col(key) == value for key, value in where.items())
    ends = [c for c in (column, f"{column}_low", f"{column}_high") if c in frame.columns]
    frame = frame.with_columns(
        pl.when(chosen).then(pl.col(c) + by).otherwise(pl.col(c)).alias(c) for c in ends
    )
    frame.write_csv(path)


def without(folder, table, **where):
    """Remove the rows with these keys."""
    path = folder / f"{table}.csv"
    frame = pl.read_csv(path, infer_schema_length=None)
    frame.filter(~pl.all_horizontal(pl.col(k) == v for k, v in where.items())).write_csv(path)


def edit(folder, file, old, new):
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def found(report):
    """The verdict of each group that did not pass."""
    return {g.name: str(g.verdict) for g in report.groups if g.verdict is not Verdict.PASS}


def test_the_committed_study_passes(hq):
    checked = hq("check", COMMITTED, "--against", COMMITTED)
    assert checked.code == 0
    assert "(the same samples): 0 regressed." in checked.out


def test_a_lower_auroc_is_degraded(run, hq):
    change(run, "detection", "auroc", -0.03, precision="nf4")
    checked = hq("check", run, "--against", COMMITTED)
    assert checked.code == 4
    assert "nf4: degraded: detection.auroc of nf4 is 0.6815; committed is 0.7115" in checked.out
    assert "reason: Rounding hardly changes the order of the scores" in checked.out
    assert found(judge(run, COMMITTED)) == {"nf4": "degraded"}


def test_a_checkpoint_made_again_is_judged_by_the_spread_of_makings(run, hq):
    for column in ("auroc", "auroc_change"):
        change(run, "detection", column, -0.007, precision="gptq-4")
    assert found(judge(run, COMMITTED)) == {"gptq-4": "degraded"}  # the committed checkpoint

    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    provenance["nodes"]["pack gptq-4"]["outputs"] = "0" * 16
    (run / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    checked = hq("check", run, "--against", COMMITTED)
    assert checked.code == 5
    assert "gptq-4 was calibrated again, with other weights than the committed" in checked.out
    assert found(judge(run, COMMITTED)) == {"gptq-4": "inconclusive"}

    change(run, "detection", "auroc", -0.02, precision="gptq-4")
    change(run, "detection", "auroc", -0.007, precision="nf4")
    assert found(judge(run, COMMITTED)) == {"gptq-4": "degraded", "nf4": "degraded"}


def test_rates_of_the_frozen_threshold_are_stale_and_repaired(run, hq):
    change(run, "alarms", "false_alarms", 0.03, precision="nvfp4", domain="all", promised=0.1)
    checked = hq("check", run, "--against", COMMITTED)
    assert checked.code == 3
    assert "nvfp4: threshold-stale: alarms.false_alarms of nvfp4 all 0.1" in checked.out
    row = read_table(run, "alarms").row(
        by_predicate=(pl.col("precision") == "nvfp4")
        & (pl.col("domain") == "all")
        & (pl.col("promised") == 0.1),
        named=True,
    )
    (group,) = (g for g in judge(run, COMMITTED).groups if g.name == "nvfp4")
    (repair,) = group.repairs
    assert (repair.row, repair.threshold) == ({"promised": 0.1}, row["threshold_recalibrated"])
    assert repair.rates["recalibrated with labels"] == tuple(
        row[f"false_alarms_recalibrated{end}"] for end in ("", "_low", "_high")
    )
    assert f"promised 0.1: threshold {repair.threshold:.4g}, false alarms" in checked.out


def test_a_recalibrated_threshold_that_fails_is_no_stale_threshold(run):
    for column in ("false_alarms", "false_alarms_recalibrated"):
        change(run, "alarms", column, 0.03, precision="int8", domain="all")
    assert found(judge(run, COMMITTED)) == {"int8": "degraded"}


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("provenance.json", "f796851d903bbe0f", "abcdefabcdefabcd", "is of model abcdefabcdefabcd"),
        ("provenance.json", '"quota": 1300', '"quota": 13', r"sampling\.quota is 13, not 1300"),
        ("provenance.json", '"study": "smollm2-knowledge"', '"study": "x"', "study is 'x', not"),
        ("results.json", '"schema": 1', '"schema": 2', r"results\.json has schema 2, .* schema 1"),
    ],
)
def test_other_models_studies_and_schemas_are_incomparable(file, old, new, why, run, hq):
    edit(run, file, old, new)
    checked = hq("check", run, "--against", COMMITTED)
    assert checked.code == 6
    assert len(re.findall(why, checked.out)) == 1
    assert set(found(judge(run, COMMITTED)).values()) == {"incomparable"}


def test_another_version_of_a_stage_is_incomparable(run):
    facts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    facts["nodes"]["trace nf4"]["version"] = 99
    (run / "provenance.json").write_text(json.dumps(facts), encoding="utf-8")
    report = judge(run, COMMITTED)
    assert report.verdict is Verdict.INCOMPARABLE
    assert "version 99 of the stage trace" in report.groups[0].why


def test_fewer_samples_are_incomparable(run):
    change(run, "design", "n", -1, balance="text")
    report = judge(run, COMMITTED)
    assert found(report) == {"study": "incomparable"}
    assert "design.n of text is 1621; committed is 1622" in report.groups[0].why


def test_precisions_that_are_asked_must_be_in_both(hq, run):
    checked = hq("check", run, "--against", COMMITTED, "--precisions", "fp16,int3")
    assert checked.code == 6
    assert f"int3: incomparable: {COMMITTED} has no rows of int3" in checked.out
    facts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    facts["definition"]["precisions"].remove("nf4")
    (run / "provenance.json").write_text(json.dumps(facts), encoding="utf-8")
    assert "nf4" in judge(run, COMMITTED).left_out
    assert found(judge(run, COMMITTED, ["nf4"])) == {"nf4": "incomparable"}
    assert hq("check", run, "--against", COMMITTED, "--precisions", "fp16,").code == 2


def test_a_missing_row_is_an_error_and_no_pass(run, tmp_path):
    without(run, "controls", precision="nf4", control="entropy")
    report = judge(run, COMMITTED)
    assert found(report) == {"nf4": "incomparable"}
    (group,) = (g for g in report.groups if g.name == "nf4")
    assert {u.name for u in group.uncompared} == {
        "controls.probe_minus_control",
        "controls.probe_adds",
    }
    assert report.sentence.endswith("0 regressed, 2 could not be compared.")


def test_rows_of_further_checkpoints_may_be_missing(run):
    without(run, "makings", precision="gptq-4", making=4)
    assert judge(run, COMMITTED).verdict is Verdict.PASS


def test_the_worst_verdict_counts(run, hq):
    assert list(Verdict) == ["pass", "inconclusive", "threshold-stale", "degraded", "incomparable"]
    assert [v.exit_code for v in Verdict] == [0, 5, 3, 4, 6]
    assert worst([Verdict.INCONCLUSIVE, Verdict.THRESHOLD_STALE]) is Verdict.THRESHOLD_STALE
    assert worst([]) is Verdict.PASS
    change(run, "detection", "auroc", -0.03, precision="nf4")
    change(run, "alarms", "false_alarms", 0.03, precision="int8", domain="all")
    report = judge(run, COMMITTED)
    assert found(report) == {"int8": "threshold-stale", "nf4": "degraded"}
    assert hq("check", run, "--against", COMMITTED).code == 4


def test_codes_are_those_of_drift():
    ours = {"pass": "ok", "degraded": "scorer-degraded"}
    codes = {ours.get(v, str(v)): v.exit_code for v in Verdict if v is not Verdict.INCOMPARABLE}
    assert codes == EXIT_CODES


def design_of(folder, precision):
    keys = {"detection": ["precision"]}
    return designs(folder, keys, read_limits(folder), [precision])[precision]


def test_the_smallest_change_that_the_gate_shows():
    """The tolerance plus z·se of the change from FP16, with the z of 80% power."""
    row = read_table(COMMITTED, "detection").row(
        by_predicate=pl.col("precision") == "nf4", named=True
    )
    half = (row["auroc_high"] - row["auroc_low"]) / 2
    se = (row["auroc_change_high"] - row["auroc_change_low"]) / 2 / 1.959964
    found = design_of(COMMITTED, "nf4")
    assert found.smallest == pytest.approx(0.1 * half + 0.841621 * se, rel=1e-4)
    assert found.decides
    assert found.smallest < row["detectable"]
    assert found.n_needed is None


def test_tables_that_are_too_small_name_how_many_samples_would_do(committed, hq):
    edit(committed, "tolerances.toml", "margin = 0.02", "margin = 0.008")
    found = design_of(committed, "nf4")
    growth = (found.smallest / 0.008) ** 2
    assert found.n_needed == pytest.approx(1622 * growth, abs=1)
    assert found.n_needed >= 1622 * growth
    checked = hq("check", committed, "--against", committed, "--precisions", "nf4")
    assert checked.code == 5
    assert (
        f"the margin is 0.008: {found.n_needed:,} samples in {found.units_needed:,} units"
        in checked.out
    )
    edit(committed, "tolerances.toml", "auroc = {half_widths = 0.1,", "auroc = {within = 0.01,")
    checked = hq("check", committed, "--against", committed, "--precisions", "nf4")
    assert "the tolerance alone is too wide, so lower it." in checked.out


@pytest.mark.parametrize("folder", DETECT, ids=lambda path: path.name)
def test_an_aurocs_own_error_bounds_that_of_a_change(folder):
    """Two precisions' AUROCs on the same samples correlate with at least one half."""
    for row in read_table(folder, "detection").iter_rows(named=True):
        own, change = (
            row[f"{column}_high"] - row[f"{column}_low"] for column in ("auroc", "auroc_change")
        )
        assert change < own


def test_a_change_with_other_samples_may_hide_the_margin(run, hq):
    edit(run, "neurons.json", '"samples": "', '"samples": "0')
    report = judge(run, COMMITTED, ["nf4"])
    assert (report.same_samples, report.verdict) == (False, Verdict.PASS)
    change(run, "detection", "auroc", -0.009, precision="nf4")
    report = judge(run, COMMITTED, ["nf4"])
    assert found(report) == {"nf4": "inconclusive"}
    loss, allowed = 0.009, 0.5 * (0.734708 - 0.687202) / 2
    needed = int(1622 * (allowed / (0.02 - loss)) ** 2) + 1
    assert f"a loss of up to {loss + allowed:.3g} is possible" in report.groups[-1].why
    assert f"{needed:,} samples would do" in report.groups[-1].why


def test_without_a_gate_nothing_is_inconclusive(committed):
    text = (committed / "tolerances.toml").read_text(encoding="utf-8")
    (committed / "tolerances.toml").write_text(
        "[detection]\n" + text.split("[detection]\n")[1], encoding="utf-8"
    )
    assert judge(committed, committed).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("margin = 0.02", "margin = 0", "gate.margin"),
        ('column = "detection.auroc"', 'column = "auroc"', "gate.column"),
        (
            'column = "detection.auroc"',
            'column = "model.n"',
            "gate.column: model.n has no tolerance",
        ),
        (
            'change = "detection.auroc_change"',
            'change = "model.kl"',
            "is not a column of detection",
        ),
        ('change = "detection.auroc_change"', 'change = "detection.seed"', "needs an interval of"),
        ('means = "threshold"', 'means = "stale"', "'degraded', 'threshold' or 'incomparable'"),
    ],
)
def test_malformed_gates_are_one_sentence(old, new, words, committed, hq):
    edit(committed, "tolerances.toml", old, new)
    checked = hq("check", COMMITTED, "--against", committed)
    assert checked.code == 2
    assert words in checked.err
    assert len(checked.err.strip().splitlines()) == 1


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_committed_tolerances_are_the_packaged_ones_with_reasons(folder):
    kind = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["kind"]
    packaged, own = parse_limits(EXPERIMENTS[kind].tolerances()), read_limits(folder)
    assert own.gate == packaged.gate
    assert own.tolerances == {t: packaged.tolerances[t] for t in own.tolerances}
    assert all(t.reason for columns in own.tolerances.values() for t in columns.values())


def test_other_experiments_get_verdicts_from_their_columns(tmp_path):
    sweep = ROOT / "results" / "smollm2-knowledge-sweep"
    run = Path(shutil.copytree(sweep, tmp_path / "run"))
    assert judge(run, sweep).verdict is Verdict.PASS
    change(run, "costs", "accuracy", -0.2, precision="nf4", alpha=1.0)
    assert found(judge(run, sweep)) == {"nf4": "degraded"}


def test_junit_has_failures_and_errors_of_their_types(run, tmp_path, hq):
    change(run, "detection", "auroc", -0.03, precision="nf4")
    change(run, "alarms", "false_alarms", 0.03, precision="nvfp4", domain="all", promised=0.1)
    without(run, "mapping", precision="fp8")
    path = tmp_path / "hq.xml"
    checked = hq("check", run, "--against", COMMITTED, "--junit", path, "--json")
    report = json.loads(checked.out)
    xml = JUnitXml.fromfile(str(path))
    assert xml.tests == report["compared"] + len(report["errors"]) + len(report["precisions"])
    assert (xml.failures, xml.errors, xml.skipped) == (2, len(report["errors"]), 0)
    results = {
        (suite.name, case.name): result for suite in xml for case in suite for result in case.result
    }
    failure = results["nf4", "auroc of nf4"]
    assert isinstance(failure, Failure)
    assert failure.type == "degraded"
    assert "0.6815; committed is 0.7115 [0.6872, 0.7347]" in failure.message
    assert "Rounding hardly changes" in failure.text
    assert results["nvfp4", "false_alarms of nvfp4 all 0.1"].type == "threshold-stale"
    assert isinstance(results["fp8", "bits of fp8"], Error)


def test_junit_of_what_cannot_be_decided_or_compared(committed, run, tmp_path, hq):
    edit(committed, "tolerances.toml", "margin = 0.02", "margin = 0.008")
    hq("check", run, "--against", committed, "--precisions", "fp16,nf4", "--junit", "a.xml")
    results = {s.name: r for s in JUnitXml.fromfile("a.xml") for case in s for r in case.result}
    assert (type(results["nf4"]), results["nf4"].type) == (Failure, "inconclusive")
    edit(run, "provenance.json", "f796851d903bbe0f", "abcdefabcdefabcd")
    hq("check", run, "--against", committed, "--precisions", "fp16,nf4", "--junit", "b.xml")
    results = {s.name: r for s in JUnitXml.fromfile("b.xml") for case in s for r in case.result}
    assert {(name, type(r)) for name, r in results.items()} == {("fp16", Error), ("nf4", Error)}


def test_a_summary_is_appended(run, tmp_path, hq, monkeypatch):
    path = tmp_path / "summary.md"
    path.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    change(run, "alarms", "false_alarms", 0.03, precision="nvfp4", domain="all")
    hq("check", run, "--against", COMMITTED)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n### hq check")
    assert "| nvfp4 | threshold-stale | alarms.false_alarms all 0." in text
    assert "**nvfp4**, repair: promised 0.1: threshold" in text
    hq("check", run, "--against", COMMITTED, "--summary", tmp_path / "own.md")
    assert path.read_text(encoding="utf-8") == text
    assert (tmp_path / "own.md").exists()


def test_json_has_stable_keys(run, hq):
    change(run, "alarms", "false_alarms", 0.03, precision="nvfp4", domain="all", promised=0.1)
    report = json.loads(hq("check", run, "--against", COMMITTED, "--json").out)
    assert set(report) == {
        *("run", "against", "verdict", "exit_code", "same_samples", "compared", "regressed"),
        *("errors", "left_out", "remade", "precisions"),
    }
    assert (report["verdict"], report["exit_code"]) == ("threshold-stale", 3)
    (group,) = (g for g in report["precisions"] if g["precision"] == "nvfp4")
    assert set(group) == {
        *("precision", "verdict", "exit_code", "why", "compared", "regressed", "worst"),
        *("design", "repairs"),
    }
    assert group["design"]["margin"] == 0.02
    assert set(group["repairs"][0]["false_alarms"]["recalibrated with labels"]) == {
        *("value", "low", "high")
    }


def test_a_folder_that_is_no_run_is_bad_input(run, hq):
    (run / "results.json").unlink()
    checked = hq("check", run, "--against", COMMITTED)
    assert checked.code == 2
    assert "has no results.json" in checked.err
    with pytest.raises(HQError, match="no readable provenance"):
        judge(run.parent, COMMITTED)


def test_checking_imports_no_torch():
    assert STATED_FILE == NEURONS_FILE
    code = f"""
import sys
from pathlib import Path
import harness.check.regress
from harness.cli import app
import harness.check.gate, harness.check.junit, harness.check.summary
from harness.check.gate import judge
results = Path({str(COMMITTED)!r})
assert judge(results, results).verdict == "pass"
assert "torch" not in sys.modules, "torch is imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
