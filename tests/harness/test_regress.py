"""The regression check: compared rows and columns, tolerances, messages, and acceptance."""

import json
from typing import get_args

import polars as pl
import pytest

from harness.check.acceptance import accept
from harness.check.regress import as_frame, compare, compare_tables
from harness.experiments.detect.tables import TABLES, Alarm, Fidelity
from harness.tables.files import read_table, write_tables
from hq.errors import HQError
from hq.stats.intervals import Estimate


def estimate(value):
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, n=100)


def a_value(annotation, auroc, precision):
    values = {str: precision, int: 100, float: 0.25, Estimate: estimate(auroc)}
    return next(values[kind] for kind in (annotation, *get_args(annotation)) if kind in values)


# Rows that tolerances are for only.
KEYS = {Fidelity: {"group": "any"}, Alarm: {"domain": "all"}}


def a_row(kind, auroc=0.8, precision="fp16"):
    values = {n: a_value(f.annotation, auroc, precision) for n, f in kind.model_fields.items()}
    return kind(**values | KEYS.get(kind, {}))


@pytest.fixture
def run(tmp_path):
    def make(name, auroc=0.8, precisions=("fp16",), study="s", fingerprint="abc", **changes):
        tables = {
            name: [a_row(kind, auroc, p) for p in (precisions if "precision" in keys else ["all"])]
            for name, (kind, keys) in TABLES.items()
        }
        definition = {"seed": 0, "sampling": {"quota": 600}, "precisions": list(precisions)}
        facts = {
            "kind": "detect",
            "study": study,
            "fingerprint": fingerprint,
            "definition": definition | changes.get("definition", {}),
            "nodes": {
                "sample fp16": {
                    "precision": "fp16",
                    "packages": {"torch": changes.get("torch", "2")},
                },
                **{
                    f"trace {p}": {
                        "precision": p,
                        "parameters": {"seen": auroc},
                        "outputs": changes.get("outputs", "1"),
                    }
                    for p in precisions
                },
            },
        }
        folder = tmp_path / name
        write_tables(folder, TABLES, tables, facts)
        (folder / "neurons.json").write_text(changes.get("neurons", "{}"), encoding="utf-8")
        return folder

    return make


def test_a_run_agrees_with_itself(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    differences = compare(run("a"), tmp_path / "results")
    assert differences
    assert not any(d.regressed for d in differences)


def test_a_fall_regresses_and_a_rise_does_not(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    fallen, risen = (
        {d.column for d in compare(run(name, auroc), tmp_path / "results") if d.regressed}
        for name, auroc in (("low", 0.65), ("high", 0.95))
    )
    assert {"auroc_h", "accuracy"} <= fallen
    assert not {"auroc_h", "accuracy"} & risen
    assert as_frame(compare(run("low", 0.7), tmp_path / "results"))["regressed"][0]


def test_accept_keeps_tolerances_that_are_there(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    own = "[detection]\nauroc = {within = 0.5}\n"
    (tmp_path / "results" / "tolerances.toml").write_text(own, encoding="utf-8")
    accept(run("low", 0.7), tmp_path / "results")
    assert (tmp_path / "results" / "tolerances.toml").read_text(encoding="utf-8") == own
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
    with pytest.raises(HQError, match=r"other studies \(study is 't', not 's'\)"):
        compare(run("t", study="t"), tmp_path / "results")
    smaller = run("smaller", definition={"sampling": {"quota": 60}})
    with pytest.raises(HQError, match=r"definition.sampling.quota is 60, not 600"):
        compare(smaller, tmp_path / "results")
    (tmp_path / "results" / "tolerances.toml").write_text(
        "[detection]\nauroc = {within = -1}\n", encoding="utf-8"
    )
    with pytest.raises(HQError, match=r"detection\.auroc"):
        compare(good, tmp_path / "results")
    (tmp_path / "results" / "tolerances.toml").write_text(
        "[detection]\nnothing = {within = 1}\n", encoding="utf-8"
    )
    with pytest.raises(HQError, match="no column 'nothing'"):
        compare(good, tmp_path / "results")


def test_a_table_without_rows_is_compared_with_nothing(run, tmp_path):
    """A promise may take more entities than a small study has: in either folder, or in both."""
    accept(run("a"), tmp_path / "results")
    header = read_table(run("a"), "alarms").clear()
    for folder in (tmp_path / "a", tmp_path / "results"):
        header.write_csv(folder / "alarms.csv")
        assert "alarms" not in {d.table for d in compare(tmp_path / "a", tmp_path / "results")}


def test_a_relative_tolerance_grows_with_the_number(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    path = tmp_path / "results" / "tolerances.toml"
    path.write_text('[model]\nkl = {relative = 0.2, worse = "higher"}\n', encoding="utf-8")
    (risen,) = compare(run("high", 0.9), tmp_path / "results")
    assert not risen.regressed
    assert as_frame([risen])["tolerance"].to_list() == pytest.approx([0.16])
    (risen,) = compare(run("higher", 1.0), tmp_path / "results")
    assert risen.regressed


def test_a_tolerance_in_half_widths_grows_with_the_interval(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    path = tmp_path / "results" / "tolerances.toml"
    path.write_text("[detection]\nauroc = {half_widths = 0.5}\n", encoding="utf-8")
    (fallen,) = compare(run("low", 0.76), tmp_path / "results")
    assert not fallen.regressed
    frame = as_frame([fallen])
    assert frame["tolerance"].to_list() == pytest.approx([0.05])
    assert (frame["low"][0], frame["high"][0]) == pytest.approx((0.7, 0.9))
    (fallen,) = compare(run("lower", 0.74), tmp_path / "results")
    assert fallen.regressed
    path.write_text("[detection]\nper_mille = {half_widths = 0.5}\n", encoding="utf-8")
    with pytest.raises(HQError, match=r"detection\.per_mille has no interval for half_widths"):
        compare(run("b"), tmp_path / "results")


@pytest.mark.parametrize("amount", ["", "within = 1, relative = 0.1", "relative = true"])
def test_a_tolerance_is_one_number(amount, run, tmp_path):
    accept(run("a"), tmp_path / "results")
    path = tmp_path / "results" / "tolerances.toml"
    path.write_text(f"[detection]\nauroc = {{{amount}}}\n", encoding="utf-8")
    with pytest.raises(HQError, match=r"tolerances\.toml: detection\.auroc\S*: (give|Input)"):
        compare(run("b"), tmp_path / "results")


def test_cells_that_are_empty_in_both_folders_are_not_compared(run, tmp_path):
    results, other = tmp_path / "results", run("b")
    accept(run("a"), results)
    (results / "tolerances.toml").write_text(
        "[controls]\nprobe_adds = {within = 0.1}\nauroc = {within = 0.1}\n", encoding="utf-8"
    )
    columns = [f"probe_adds{end}" for end in ("", "_low", "_high")]
    empty = pl.read_csv(other / "controls.csv").with_columns(pl.lit(None).alias(c) for c in columns)
    empty.write_csv(results / "controls.csv")
    assert [d.column for d in compare(other, results)] == ["auroc"]
    (missing,) = compare_tables(other, results, ["fp16"]).uncompared
    assert (missing.name, missing.group) == ("controls.probe_adds", "fp16")
    assert missing.why == f"it is empty in {results}"
    empty.write_csv(other / "controls.csv")
    assert [d.column for d in compare(other, results)] == ["auroc"]


def test_regressions_are_listed_with_the_committed_interval(hq, run, tmp_path):
    accept(run("a"), tmp_path / "results")
    ran = hq("check", run("low", 0.7), "--against", tmp_path / "results")
    assert ran.code == 4
    row = next(line for line in ran.out.split("\n") if "detection" in line and " auroc " in line)
    assert [cell.strip() for cell in row.split("│")[4:8]] == ["0.8", "[0.7, 0.9]", "0.7", "0.05"]
    ran = hq("check", tmp_path / "low", "--against", tmp_path / "results", "--json")
    regressed = {(r["table"], r["column"]): r for r in json.loads(ran.out)["regressed"]}
    assert regressed["detection", "auroc"]["low"] == 0.7


def test_some_rows_only(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    for folder in (tmp_path / "results", run("b", 0.7)):
        frame = pl.read_csv(folder / "fidelity.csv")
        rows = [frame, frame.with_columns(group=pl.lit("probe"))]
        pl.concat(rows).write_csv(folder / "fidelity.csv")
    path = tmp_path / "results" / "tolerances.toml"
    path.write_text('[fidelity]\ncorrelation = {within = 0.01, only = "any"}\n', encoding="utf-8")
    assert [d.row for d in compare(tmp_path / "b", tmp_path / "results")] == ["fp16 any"]
    path.write_text('[fidelity]\ncorrelation = {within = 0.01, only = "every"}\n', encoding="utf-8")
    with pytest.raises(HQError, match="for 'every' only, which no row has"):
        compare(tmp_path / "b", tmp_path / "results")


def test_precisions_that_only_one_side_ran_are_left_out(run, tmp_path):
    accept(run("a"), tmp_path / "results")
    path = tmp_path / "results" / "detection.csv"
    frame = pl.read_csv(path)
    pl.concat([frame, frame.with_columns(precision=pl.lit("nf4"))]).write_csv(path)
    assert {d.row for d in compare(run("a"), tmp_path / "results")} == {
        "all",
        "fp16",
        "fp16 fp16",
        "fp16 any",
        "fp16 100",
        "fp16 all 0.25",
    }


def files(folder, left_out="tolerances.toml"):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != left_out}


@pytest.mark.parametrize("part", [("fp16",), ("fp16", "nf4"), ("fp16", "int8")])
def test_accepting_some_precisions_keeps_the_rows_of_the_others(part, run, tmp_path):
    whole = run("whole", precisions=("fp16", "int8", "nf4"))
    accept(whole, tmp_path / "results")
    accept(run("part", precisions=part), tmp_path / "results")
    assert files(tmp_path / "results") == files(whole)


def test_accepting_a_new_precision_adds_its_rows(run, tmp_path):
    accept(run("some", precisions=("fp16", "nf4")), tmp_path / "results")
    accept(run("more", precisions=("fp16", "int8")), tmp_path / "results")
    assert files(tmp_path / "results") == files(run("all", precisions=("fp16", "nf4", "int8")))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"torch": "3"}, r"nodes.sample fp16.packages.torch is '3', not '2'"),
        ({"auroc": 0.7}, r"nodes.trace fp16.parameters.seen is 0.7, not 0.8"),
        ({"definition": {"device": "cuda"}}, r"only one of them has definition.device"),
        ({"definition": {"seed": 1}}, r"definition.seed is 1, not 0"),
        ({"fingerprint": "xyz"}, r"fingerprint is 'xyz', not 'abc'"),
        ({"neurons": "[]"}, r"the neurons differ"),
        ({"study": "t"}, r"of the study s, not of t"),
    ],
)
def test_rows_that_would_no_longer_be_true_are_not_kept(changes, why, run, tmp_path):
    accept(run("whole", precisions=("fp16", "int8", "nf4")), tmp_path / "results")
    before = files(tmp_path / "results")
    with pytest.raises(HQError, match=why) as refused:
        accept(run("part", **changes), tmp_path / "results")
    assert "another folder" in str(refused.value) or "fp16,int8,nf4" in str(refused.value)
    assert files(tmp_path / "results") == before


def test_runs_with_other_numbers_of_makings_are_of_the_same_study(run, tmp_path):
    several, one = ({"seed": 0, "pack": {"group_size": 0, "makings": n}} for n in (5, 1))
    accept(run("whole", precisions=("fp16", "nf4"), definition=several), tmp_path / "results")
    part = run("part", definition=one)
    assert compare(part, tmp_path / "results")
    accept(part, tmp_path / "results")
    other = run("other", definition=one | {"pack": {"group_size": 128, "makings": 1}})
    with pytest.raises(HQError, match=r"definition\.pack\.group_size is 128, not 0"):
        compare(other, tmp_path / "results")


def test_rows_stay_beside_neurons_that_another_machine_rounds_otherwise(run, tmp_path):
    def neurons(weight):
        return json.dumps({"model": "m", "neurons": [{"index": 3, "weight": weight}]})

    accept(run("whole", precisions=("fp16", "nf4"), neurons=neurons(0.5)), tmp_path / "results")
    accept(run("near", neurons=neurons(0.50001)), tmp_path / "results")
    assert (tmp_path / "results" / "neurons.json").read_text(encoding="utf-8") == neurons(0.5)
    with pytest.raises(HQError, match="the neurons differ"):
        accept(run("far", neurons=neurons(0.51)), tmp_path / "results")


def test_rows_stay_beside_the_same_neurons_of_schema_1(run, tmp_path):
    old = json.dumps({"schema_version": 1, "model": {"kin": "0a"}, "neurons": []})
    new = json.dumps({"schema_version": 2, "model": {"norm_digest": "0a"}, "neurons": []})
    accept(run("whole", precisions=("fp16", "nf4"), neurons=old), tmp_path / "results")
    accept(run("new", neurons=new), tmp_path / "results")
    with pytest.raises(HQError, match="the neurons differ"):
        accept(run("other", neurons=new.replace("0a", "0b")), tmp_path / "results")


def test_rows_stay_beside_contents_that_another_machine_computes_otherwise(run, tmp_path):
    accept(run("whole", precisions=("fp16", "nf4")), tmp_path / "results")
    accept(run("part", outputs="2"), tmp_path / "results")
    nodes = json.loads((tmp_path / "results" / "provenance.json").read_text(encoding="utf-8"))[
        "nodes"
    ]
    assert (nodes["trace fp16"]["outputs"], nodes["trace nf4"]["outputs"]) == ("2", "1")


def test_a_new_column_is_empty_in_rows_that_stay(run, tmp_path):
    results = tmp_path / "results"
    accept(run("whole", precisions=("fp16", "nf4")), results)
    columns = ["kl", "kl_low", "kl_high"]
    pl.read_csv(results / "model.csv").drop(columns).write_csv(results / "model.csv")
    accept(run("part"), results)
    frame = read_table(results, "model")
    assert frame["kl"].to_list() == [0.8, None]
    markdown = (results / "tables.md").read_text(encoding="utf-8")
    (row,) = [
        line
        for line in markdown.split("## model")[1].split("## ")[0].split("\n")
        if line.startswith("| nf4")
    ]
    assert row.endswith("| — |")
    stored = json.loads((results / "results.json").read_text(encoding="utf-8"))
    assert [r["kl"] for r in stored["tables"]["model"]["rows"]] == [0.8, None]


def test_results_from_before_a_table_are_compared_and_accepted_without_it(run, tmp_path):
    results = tmp_path / "results"
    accept(run("whole", precisions=("fp16", "nf4")), results)
    (results / "makings.csv").unlink()
    with pytest.raises(HQError, match=r"no makings\.csv"):  # it was there
        compare(run("same"), results)
    path = results / "results.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    del stored["tables"]["makings"]
    path.write_text(json.dumps(stored), encoding="utf-8")
    differences = compare(run("again"), results)
    assert "detection" in {d.table for d in differences}
    assert "makings" not in {d.table for d in differences}
    accept(run("part"), results)
    assert read_table(results, "makings")["precision"].to_list() == ["fp16"]
    assert read_table(results, "detection")["precision"].to_list() == ["fp16", "nf4"]


def test_results_json_has_every_table_with_the_meaning_of_its_columns(run):
    stored = json.loads((run("a") / "results.json").read_text(encoding="utf-8"))
    assert (stored["kind"], stored["study"]) == ("detect", "s")
    assert set(stored["tables"]) == set(TABLES)
    for name, (kind, keys) in TABLES.items():
        table = stored["tables"][name]
        assert table["keys"] == list(keys)
        assert set(table["columns"]) == set(kind.model_fields)
        frame = read_table(run("a"), name)
        assert [list(row) for row in table["rows"]] == [frame.columns]


def test_a_run_of_all_precisions_replaces_everything(run, tmp_path):
    accept(run("old", precisions=("fp16", "nf4")), tmp_path / "results")
    new = run("new", auroc=0.7, precisions=("fp16", "nf4"), definition={"seed": 1}, torch="3")
    accept(new, tmp_path / "results")
    assert files(tmp_path / "results") == files(new)


def test_provenance_is_json(run):
    assert json.loads((run("a") / "provenance.json").read_text(encoding="utf-8"))["study"] == "s"


def test_rows_that_a_precision_no_longer_has_do_not_stay(run, tmp_path):
    results = tmp_path / "results"
    accept(run("whole", precisions=("fp16", "int8", "nf4")), results)
    part = run("part", precisions=("fp16", "nf4"))
    alarms = read_table(part, "alarms", Alarm)
    alarms.filter(pl.col("precision") != "nf4").write_csv(part / "alarms.csv")
    accept(part, results)
    assert read_table(results, "alarms")["precision"].to_list() == ["fp16", "int8"]
    assert read_table(results, "controls")["precision"].to_list() == ["fp16", "int8", "nf4"]


def test_numbers_of_a_processor_are_compared_as_if_the_samples_were_others(run, tmp_path):
    same = '{"provenance": {"samples": "0"}}'
    precisions = ("fp16", "int8")
    accept(run("a", precisions=precisions, neurons=same), tmp_path / "results")
    path = tmp_path / "results" / "tolerances.toml"
    columns = "[detection]\nauroc = {half_widths = 0.1, other_samples = 0.5}\n"
    path.write_text('by_processor = ["int8"]\n' + columns, encoding="utf-8")
    fallen = run("low", 0.77, precisions=precisions, neurons=same)
    regressed = {d.row: d.regressed for d in compare(fallen, tmp_path / "results")}
    assert regressed == {"fp16": True, "int8": False}
    path.write_text(columns, encoding="utf-8")
    assert all(d.regressed for d in compare(fallen, tmp_path / "results"))
