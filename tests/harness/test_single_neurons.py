"""`hq neurons test`, and the experiments information and distributions, on the tiny study."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from scipy.stats import hypergeom
from sklearn.metrics import mutual_info_score, roc_auc_score

from harness.experiments import EXPERIMENTS
from harness.experiments.run import load_study
from harness.stages.graph import Graph
from harness.stages.materials import Materials
from harness.store.progress import Progress
from harness.store.runner import Runner
from harness.store.store import Store
from harness.tables.files import read_table
from hq.neurons.neuron_set import NeuronSet

OPTIONS = ("--precisions", "fp16,nf4", "--quiet")


@pytest.fixture
def stages(finished, tmp_path):
    shutil.copytree(finished / "cache", tmp_path / "cache")


@pytest.fixture
def two_scenarios(own_study):
    """The study, with a second scenario of half of its questions, asked in another form."""
    text = own_study.read_text(encoding="utf-8")
    questions = own_study.parent / "questions.jsonl"
    lines = questions.read_text(encoding="utf-8").splitlines()[:200]
    fewer = own_study.parent / "fewer.jsonl"
    fewer.write_text("\n".join(lines) + "\n", encoding="utf-8")
    other = text.replace(str(questions), str(fewer)).replace('"tiny"', '"fewer"')
    path = own_study.parent / "fewer.toml"
    path.write_text(other, encoding="utf-8")
    section = f"\n[conditions]\nother = {json.dumps(str(path))}\ntau = 0.55\ntau_cross = 0.5\n"
    own_study.write_text(text + section, encoding="utf-8")
    return own_study


def opened(study, tmp_path, kind):
    """The materials of a finished run, and the outputs of its nodes."""
    m = Materials(load_study(str(study)))
    nodes = EXPERIMENTS[kind].nodes(m)
    return m, Runner(Store(tmp_path / "cache" / "store"), Progress(quiet=True), m).run(nodes)


def repeated(hq, command, run, kind):
    """A second run has the same files; its tables can be accepted, and are equal to themselves."""
    files = [f"{name}.csv" for name in EXPERIMENTS[kind].tables] + ["tables.md", "provenance.json"]
    before = {name: (run / name).read_bytes() for name in files}
    assert f'"kind": "{kind}"' in hq(*command, "--json").out
    assert {name: (run / name).read_bytes() for name in files} == before
    results = run.parent.parent / "results"
    assert hq("check", run, "--against", results, "--accept").code == 0
    assert hq("check", run, "--against", results).code == 0


@pytest.mark.usefixtures("stages")
def test_conditions_are_the_definition(hq, two_scenarios, tmp_path):
    command = ("neurons", "test", two_scenarios, *OPTIONS)
    ran = hq(*command)
    assert ran.code == 0, ran.err
    assert "AUROC > 0.55; 3: AUROC > 0.5 in fewer" in ran.out
    run = tmp_path / "runs" / "tiny-conditions"
    neurons = NeuronSet.load(run / "neurons.json")
    rows = read_table(run, "conditions")
    positions = [(n.layer, n.index) for n in neurons.positive]
    for precision in ("fp16", "nf4"):
        of = rows.filter(pl.col("precision") == precision)
        assert of.select("layer", "index").rows() == positions

    m, outputs = opened(two_scenarios, tmp_path, "conditions")
    with m:
        graphs = Graph(m), Graph(m.with_questions_of(str(two_scenarios.parent / "fewer.toml")))
        y, other_y = (
            np.array([s.hallucinated for s in graph.read_samples(outputs)]) for graph in graphs
        )
        cett, other_cett = (
            np.asarray(graph.read_traces(outputs, "nf4").matrix("sum", "answer"))
            for graph in graphs
        )
    areas = np.array([roc_auc_score(y, column) for column in cett.T])
    cross = np.array([roc_auc_score(other_y, column) for column in other_cett.T])
    of = rows.filter(pl.col("precision") == "nf4")
    assert of["auroc"].to_list() == pytest.approx(areas[neurons.flat_positive], abs=1e-5)
    assert of["auroc_cross"].to_list() == pytest.approx(cross[neurons.flat_positive], abs=1e-5)
    for row in of.iter_rows(named=True):
        for column, ends in (("holds", ""), ("shown", "_low")):
            second = row[f"auroc{ends}"] > 0.55
            third = row[f"auroc_cross{ends}"] > 0.5
            assert ("2" in row[column], "3" in row[column]) == (second, third)
    counts = read_table(run, "counts").filter(pl.col("precision") == "nf4")
    for row in counts.iter_rows(named=True):
        second, third = areas > row["tau"], cross > row["tau_cross"]
        expected = [second.sum(), third.sum(), (second & third).sum()]
        assert [row[c] for c in ("second", "third", "both")] == expected
        chosen = neurons.flat_positive
        assert row["h_all"] == (second & third)[chosen].sum()
        if row["tau"] == 0.5:  # without a signal, half of the neurons are above
            assert row["second_chance"] == pytest.approx(192, abs=40)
        p = hypergeom.sf(third[chosen].sum() - 1, len(third), third.sum(), len(chosen))
        assert row["h_third_p"] == pytest.approx(p, abs=1e-6)
    scenarios = read_table(run, "scenarios")
    assert scenarios["n"].to_list() == [len(y), len(other_y)]
    assert scenarios["same_questions"].to_list()[1] > 0  # the second has some of the first
    repeated(hq, command, run, "conditions")


def test_a_second_scenario_is_needed_before_anything_runs(hq, tiny_study, tmp_path):
    ran = hq("neurons", "test", tiny_study, *OPTIONS)
    assert ran.code == 2
    assert "set conditions.other to a study of other questions" in ran.err
    same = hq("neurons", "test", tiny_study, *OPTIONS, "--set", f"conditions.other={tiny_study}")
    assert same.code == 2
    assert "name a study of another scenario" in same.err
    unknown = hq("neurons", "test", tiny_study, "--set", "conditions.other=nowhere")
    assert unknown.code == 2
    assert "no study 'nowhere'" in unknown.err
    wrong = hq("neurons", "test", tiny_study, "--set", "conditions.tau=1.5")
    assert wrong.code == 2
    assert "tau" in wrong.err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("stages")
def test_information_of_each_neuron(hq, tiny_study, tmp_path):
    command = ("run", tiny_study, "-e", "information", *OPTIONS)
    ran = hq(*command)
    assert ran.code == 0, ran.err
    run = tmp_path / "runs" / "tiny-information"
    m, outputs = opened(tiny_study, tmp_path, "information")
    with m:
        graph = Graph(m)
        y = np.array([s.hallucinated for s in graph.read_samples(outputs)])
        cett = np.asarray(graph.read_traces(outputs, "nf4").matrix("sum", "answer"))
    high = cett > np.sort(cett, axis=0)[int(np.ceil(len(y) / 2)) - 1]
    plug_in = np.array([mutual_info_score(h, y) for h in high.T]) / np.log(2)
    neurons = NeuronSet.load(run / "neurons.json")
    rows = read_table(run, "neurons").filter(pl.col("precision") == "nf4")
    of_h = plug_in[neurons.flat_positive]
    assert rows["plug_in"].to_list() == pytest.approx(of_h, abs=1e-6)
    bias = 1 / (2 * len(y) * np.log(2))
    assert rows["information"].to_list() == pytest.approx(of_h - bias, abs=1e-6)
    assert (rows["p_holm"] >= rows["p"]).all()
    assert (rows["p_all"] >= rows["p"]).all()  # among all neurons, more reach it

    layers = read_table(run, "layers").filter(pl.col("precision") == "nf4")
    assert layers["h_neurons"].to_list() == [neurons.layers.get(i, 0) for i in range(3)]
    regular = np.setdiff1d(np.arange(3 * 128), neurons.flat)
    expected = [plug_in[regular[regular // 128 == i]].mean() - bias for i in range(3)]
    assert layers["regular"].to_list() == pytest.approx(expected, abs=1e-6)
    summary = read_table(run, "information").filter(pl.col("precision") == "nf4")
    assert summary["information"].to_list() == pytest.approx([of_h.mean() - bias], abs=1e-6)
    assert summary["held_out_matched_low"][0] > -3 * bias  # near 0, never far below
    repeated(hq, command, run, "information")


@pytest.mark.usefixtures("stages")
def test_distributions_of_each_set(hq, tiny_study, tmp_path):
    command = ("run", tiny_study, "-e", "distributions", *OPTIONS)
    ran = hq(*command)
    assert ran.code == 0, ran.err
    run = tmp_path / "runs" / "tiny-distributions"
    m, outputs = opened(tiny_study, tmp_path, "distributions")
    with m:
        graph = Graph(m)
        y = np.array([s.hallucinated for s in graph.read_samples(outputs)])
        cett = np.asarray(graph.read_traces(outputs, "nf4").matrix("sum", "answer"))
        identified = graph.read_neurons(outputs, "nf4")
    neurons = NeuronSet.load(run / "neurons.json")
    effects = read_table(run, "effects").filter(pl.col("precision") == "nf4")
    deltas = [_cliff(cett[y, j], cett[~y, j]) for j in neurons.flat_positive]
    assert effects["delta"].to_list() == pytest.approx(deltas, abs=1e-5)
    medians = np.median(cett[~y][:, neurons.flat_positive], axis=0)
    assert effects["median_right"].to_list() == pytest.approx(medians, rel=1e-5)
    sets = read_table(run, "sets").filter(pl.col("precision") == "nf4")
    assert sets["neurons"].to_list() == ["h", "matched", "random"]
    assert sets["delta"][0] == pytest.approx(np.mean(deltas), abs=1e-5)
    assert sets["magnitude"][0] == pytest.approx(np.mean(np.abs(deltas)), abs=1e-5)

    quantiles = read_table(run, "quantiles").filter(pl.col("precision") == "nf4")
    relative = cett[:, neurons.flat_positive] / cett[:, neurons.flat_positive].mean(axis=0)
    expected = np.quantile(relative[y], [0.05, 0.25, 0.5, 0.75, 0.95])
    row = quantiles.filter((pl.col("neurons") == "h") & (pl.col("label") == "hallucinated"))
    columns = ("q05", "q25", "q50", "q75", "q95")
    assert row.select(columns).row(0) == pytest.approx(expected, rel=1e-4)

    density = read_table(run, "density").filter(pl.col("precision") == "nf4")
    counts = [identified.layers.get(i, 0) for i in range(3)]
    assert density["h_neurons"].to_list() == counts
    placed = hypergeom(384, sum(counts), 128)
    p = [min(1, 2 * min(placed.cdf(k), placed.sf(k - 1))) for k in counts]
    assert density["p"].to_list() == pytest.approx(p, rel=1e-4)
    assert density["per_mille"].to_list() == pytest.approx([k / 0.128 for k in counts])
    placement = read_table(run, "placement").filter(pl.col("precision") == "nf4")
    depth = np.arange(3) / 2 @ np.array(counts) / sum(counts)
    assert placement["depth"].to_list() == pytest.approx([depth], abs=1e-5)
    repeated(hq, command, run, "distributions")


def _cliff(first, second):
    pairs = np.subtract.outer(first, second)
    return (np.sign(pairs)).mean()
