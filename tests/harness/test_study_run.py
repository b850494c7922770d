"""`hq study run` from questions to tables, and every command that reads what it leaves."""

import copy
import json
import shutil
import signal
from pathlib import Path

import polars as pl
import pytest

from harness.experiments.detect.tables import TABLES
from harness.stages.samples import read_samples
from harness.tables.files import read_table
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.probe.text import TEXT_CONTROLS
from tests.harness.killing import Killer, needs_sigkill

REPEATABLE = [f"{name}.csv" for name in TABLES] + [
    "tables.md",
    "results.json",
    "neurons.json",
    "probes.json",
    "path.csv",
    "stability.csv",
    "samples.jsonl",
    "provenance.json",
]


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in REPEATABLE}


def stages(store: Path) -> set[str]:
    return {path.name for path in store.iterdir() if path.is_dir()}


def test_rows_that_cannot_be_used_are_named_and_counted(finished):
    run = finished / "runs" / "tiny"
    (row,) = read_table(run, "rows_set_aside").iter_rows(named=True)
    assert row["row"] == "line 401"
    assert row["reason"].startswith("has no answers")
    sampling = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["sampling"]
    assert sampling["rows_set_aside"] == 1
    assert sampling["questions"] == 400


def test_a_run_leaves_its_tables(finished):
    run = finished / "runs" / "tiny"
    detection = read_table(run, "detection")
    assert detection["precision"].to_list() == ["fp16", "nf4"]
    assert detection["auroc_change"][0] == 0
    assert detection["flips"][0] == 0
    assert detection["verdict"][0] == "preserved"
    assert detection["detectable"].is_null().to_list() == [True, False]
    assert 0 < detection["detectable"][1] < 0.5
    assert set(read_table(run, "controls")["control"]) == {
        "random",
        "matched",
        "entropy",
        "length",
        "relation",
        *TEXT_CONTROLS,
    }
    assert read_table(run, "model")["kl"].to_list()[0] == 0
    assert read_table(run, "model")["kl"].to_list()[1] > 0
    assert (
        read_table(run, "fidelity").filter(pl.col("precision") == "nf4")["relative_error"].min() > 0
    )
    assert len(NeuronSet.load(run / "neurons.json").positive) > 0


def test_samples_are_balanced_and_no_unit_is_in_two_folds(finished):
    samples = read_samples(finished / "runs" / "tiny" / "samples.jsonl")
    assert sum(s.hallucinated for s in samples) * 2 == len(samples)
    assert {(s.fold, s.hallucinated) for s in samples} == {
        (fold, label) for fold in (0, 1, 2) for label in (False, True)
    }
    folds = {(s.unit, s.fold) for s in samples}
    assert len(folds) == len({unit for unit, _ in folds})


def test_text_only_controls_and_detectable_changes_are_shown(finished, tiny_study, hq, monkeypatch):
    run = finished / "runs" / "tiny"
    (row,) = read_table(run, "design").iter_rows(named=True)
    assert (row["balance"], row["folds"]) == ("text", 3)
    assert 40 <= row["n"] <= 120
    leaks = [
        n for n in ("answer", "question", "both", "spelling") if abs(row[f"text_{n}"] - 0.5) > 0.05
    ]
    assert all(f"text-{name} {row[f'text_{name}']:.3f} [" in row["warning"] for name in leaks)
    monkeypatch.setenv("HQ_CACHE", str(finished / "cache"))
    shown = " ".join(hq("study", "run", tiny_study, "--into", "again", "--quiet").out.split())
    warns = "Warning: the labels can be predicted from text alone" in shown
    assert warns == bool(leaks) == bool(row["warning"])
    assert f"spelling {row['text_spelling']:.2f}" in shown
    change = read_table(run, "detection")["detectable"][1]
    assert f"Smallest detectable change (80% power): nf4 {change:.3f}" in shown


def test_selection_says_how_stable_the_neurons_are(finished):
    run = finished / "runs" / "tiny"
    fp16 = read_table(run, "selection").row(0, named=True)
    probes = CrossFit.load(run / "probes.json")
    assert probes.neurons == NeuronSet.load(run / "neurons.json")
    sizes = [len(fold.probe.neurons) for fold in probes.folds]
    assert (fp16["neurons"], fp16["fewest"], fp16["most"]) == (
        len(probes.neurons.neurons),
        min(sizes),
        max(sizes),
    )
    stability = pl.read_csv(run / "stability.csv")
    in_set = stability.filter(pl.col("weight") != 0)
    assert len(in_set) == fp16["neurons"]
    assert fp16["in_all_folds"] == (in_set["folds"] == 3).sum()
    assert fp16["stable"] == (stability["frequency"] >= 0.6).sum()


def test_a_second_run_computes_nothing(finished, tiny_study, hq, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(finished / "cache"))

    def no_model(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("harness.stages.loading.open_backend", no_model)
    outcome = hq("study", "run", tiny_study, "--into", "again", "--json")
    assert outcome.code == 0
    assert contents(Path("again")) == contents(finished / "runs" / "tiny")
    printed = json.loads(outcome.out)
    assert printed["tables"]["detection"][0]["precision"] == "fp16"
    for name, (kind, _) in TABLES.items():
        rows = [kind.model_validate(row, extra="forbid") for row in printed["tables"][name]]
        assert bool(rows) == (name not in ("makings", "spread"))


def test_another_precision_only_adds(finished, tiny_study, hq, tmp_path):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    before = stages(tmp_path / "cache" / "store")
    assert hq("study", "run", tiny_study, "--precisions", "int8", "--into", "more").code == 0
    added = stages(tmp_path / "cache" / "store") - before
    assert sorted(name.split("-")[0] for name in added) == [
        "identify",
        "map",
        "trace",
        "uncertainty",
    ]
    assert read_table(Path("more"), "detection")["precision"].to_list() == ["fp16", "int8"]


# A function, at which of its calls the process is killed, and a file that is then left behind.
KILLS = (
    ("harness.stages.sample append", 4, "responses-*/log.jsonl"),
    ("hq.tracing.traces require_finite", 4, "trace-*.partial/batches.txt"),
    ("hq.neurons.neuron_set:NeuronSet save", 1, "identify-*.partial/probes.json"),
    ("harness.stages.uncertainty append", 3, "uncertainty-*.partial/batches.jsonl"),
    ("os rename", 1, "uncertainty-*.partial/node.json"),
)


@needs_sigkill
def test_killed_at_every_stage_in_turn_it_ends_with_the_same_bytes(
    finished, tiny_study, hq, tmp_path
):
    """Each process goes on from where the one before was killed; the last one ends the study."""
    cache = tmp_path / "cache" / "store"
    with Killer(tmp_path) as killer:
        for function, call, left in KILLS:
            code = killer.run(function, call, "study", "run", tiny_study, "--quiet")
            assert code == -signal.SIGKILL, function
            assert list(cache.glob(left)), function
            assert not (tmp_path / "runs").exists()
    assert hq("study", "run", tiny_study).code == 0
    assert contents(tmp_path / "runs" / "tiny") == contents(finished / "runs" / "tiny")
    assert stages(cache) == stages(finished / "cache" / "store")


def accepted(hq, run):
    """Accept a run as `results`, without the margin, which so few samples cannot rule out."""
    assert hq("check", run, "--against", "results", "--accept").code == 0
    path = Path("results/tolerances.toml")
    text = path.read_text(encoding="utf-8")
    assert "\n[gate]\n" in text
    path.write_text(
        text.split("\n[gate]\n")[0] + text[text.index("\n[design]\n") :], encoding="utf-8"
    )


def test_check_passes_itself_and_names_what_regressed(finished, hq):
    run = finished / "runs" / "tiny"
    accepted(hq, run)
    assert hq("check", run, "--against", "results").code == 0
    path = Path("results/detection.csv")
    frame = pl.read_csv(path)
    frame.with_columns(auroc=pl.col("auroc") + 0.2).write_csv(path)
    outcome = hq("check", run, "--against", "results")
    assert outcome.code == 4
    assert "auroc" in outcome.out
    assert f"{frame['auroc'][1] + 0.2:.4g}" in outcome.out
    assert len(json.loads(hq("check", run, "--against", "results", "--json").out)["regressed"]) == 2


def test_check_refuses_another_study_and_accepts_some_of_its_rows(finished, tiny_study, hq):
    run = finished / "runs" / "tiny"
    accepted(hq, run)
    shutil.copytree(run, "other")
    path = Path("other/provenance.json")
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["definition"]["sampling"]["quota"] = 7
    path.write_text(json.dumps(facts), encoding="utf-8")
    outcome = hq("check", "other", "--against", "results")
    assert outcome.code == 6
    assert "definition.sampling.quota is 7, not 60" in " ".join(outcome.out.split())
    shutil.copytree(finished / "cache", "cache")
    assert hq("study", "run", tiny_study, "--precisions", "fp16", "--into", "fp16").code == 0
    assert hq("check", "fp16", "--against", "results").code == 0
    assert hq("check", "fp16", "--against", "results", "--accept").code == 0
    for name in (
        *(f"{name}.csv" for name in TABLES),
        "tables.md",
        "results.json",
        "provenance.json",
    ):
        assert (Path("results") / name).read_bytes() == (run / name).read_bytes()


def test_accepting_a_precision_made_anew_keeps_the_others_rows(finished, hq):
    run, results = finished / "runs" / "tiny", Path("results/provenance.json")
    assert hq("check", run, "--against", "results", "--accept").code == 0
    whole = json.loads(results.read_text(encoding="utf-8"))
    for precision, code in (("nf4", 0), ("fp16", 2)):
        facts = copy.deepcopy(whole)
        facts["definition"]["precisions"] += ["gptq-4"]  # which the run does not have
        facts["nodes"][f"trace {precision}"]["version"] = 99
        results.write_text(json.dumps(facts), encoding="utf-8")
        outcome = hq("check", run, "--against", "results", "--accept")
        assert outcome.code == code, outcome
    assert "nodes.trace fp16.version is" in outcome.err


def test_accepting_draws_a_picture_that_is_there_anew(finished, hq, monkeypatch):
    run = finished / "runs" / "tiny"
    assert hq("check", run, "--against", "results", "--accept").code == 0
    assert not Path("results/auroc.svg").exists()
    picture = Path("results/auroc.svg")
    picture.write_text("old", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr("harness.cli.check.find_spec", lambda name: None)
        outcome = hq("check", run, "--against", "results", "--accept")
    assert "hq picture results --into results/auroc.svg" in " ".join(outcome.err.split())
    assert picture.read_text(encoding="utf-8") == "old"
    pytest.importorskip("altair")
    assert hq("check", run, "--against", "results", "--accept").code == 0
    assert "matched random neurons" in picture.read_text(encoding="utf-8")


def test_single_stages_agree_with_the_study(finished, tiny_study, hq):
    run, model = finished / "runs" / "tiny", tiny_study.parent / "model"
    samples = ("--samples", run / "samples.jsonl")
    for precision in ("fp16", "nf4"):
        where = ("--precision", precision, "--into", precision, "--model", model)
        assert hq("trace", *samples, *where).code == 0
    limits = ("--max-fraction", 0.05)
    where = ("--traces", "fp16", "--into", "found", "--prompt", "few-shot")
    assert hq("identify", *samples, *where, *limits).code == 0
    for name in ("neurons.json", "probes.json", "path.csv", "stability.csv"):
        assert (Path("found") / name).read_bytes() == (run / name).read_bytes()
    compared = hq(
        *("compare", *samples, "--neurons", "found/neurons.json", "--json"),
        *("--reference", "fp16", "--variant", "nf4"),
    )
    assert compared.code == 0
    found = json.loads(compared.out)["detection"][0]
    expected = read_table(run, "detection").row(1, named=True)
    for name in ("auroc", "auroc_change", "flips"):
        assert found[name]["value"] == pytest.approx(expected[name], abs=1e-5)


def test_neurons_and_pictures_can_be_shown(finished, hq):
    run = finished / "runs" / "tiny"
    shown = hq("neurons", "show", run / "neurons.json")
    assert shown.code == 0
    assert "H-Neurons" in shown.out
    assert json.loads(hq("neurons", "show", run / "neurons.json", "--json").out)["neurons"]
    pytest.importorskip("altair")
    assert hq("picture", run, "--into", "auroc.svg").code == 0
    picture = Path("auroc.svg").read_text(encoding="utf-8")
    n, units = read_table(run, "detection").select("n", "units").row(0)
    for words in (
        "matched random neurons",
        "text: words of both",
        f"AUROC out of fold, {n} samples in {units} units",
    ):
        assert words in picture


def test_ctrl_c_says_how_to_go_on(tiny_study, hq, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.store.runner.Runner.run", interrupt)
    outcome = hq("study", "run", tiny_study)
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "Interrupted; the same command continues from here.\n"


def test_help_and_version(hq):
    assert "study" in hq("--help").out
    assert hq("--version").out.strip()
    assert "--fresh" in hq("study", "run", "--help").out


def test_a_full_disk_is_reported_before_the_first_node(tiny_study, hq, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=0)
    monkeypatch.setattr("harness.experiments.run.shutil.disk_usage", lambda _: usage)
    outcome = hq("run", tiny_study)
    assert (outcome.code, outcome.out) == (2, "")
    assert "0.0 GiB are free" in outcome.err
    assert not list(Path("cache/store").glob("*"))


def test_a_plan_computes_nothing_and_says_what_is_there(finished, tiny_study, hq, monkeypatch):
    fresh = json.loads(hq("plan", tiny_study, "--json").out)["nodes"]
    assert {node["state"] for node in fresh} == {"missing", "waits"}
    assert not list(Path("cache/store").glob("*"))
    monkeypatch.setenv("HQ_CACHE", str(finished / "cache"))
    again = json.loads(hq("plan", tiny_study, "--json").out)["nodes"]
    assert [node["node"] for node in again] == [node["node"] for node in fresh]
    assert {node["state"] for node in again} == {"there"}
