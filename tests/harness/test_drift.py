"""`hq drift` on files, and the experiment on the tiny study."""

import json
import shutil

import numpy as np
import pytest

from harness.cli.drift import EXIT_CODES
from harness.experiments.drift.repair import METHODS
from harness.experiments.drift.tables import TABLES
from harness.stages.alarms import Scores, domain_of
from harness.stages.identify import NEURONS_FILE, PROBES_FILE, Rows
from harness.stages.samples import read_samples, samples_digest, write_samples
from harness.tables.files import read_table
from hq.monitor.bundle import ALL, BundleFacts, Domain, ModelFile, Validation, write_bundle
from hq.monitor.drift import Verdict
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit, cross_fit
from hq.stats.auroc import auroc
from hq.stats.intervals import Estimate
from hq.tracing.traces import INFO_FILE, TraceInfo, Traces, exchanges_digest
from tests.harness import synthetic_detect
from tests.sharing import shared

MODEL = synthetic_detect.MODEL


def write_traces(folder, samples, shares, precision, model=MODEL):
    """A finished trace of the samples."""
    folder.mkdir(parents=True)
    np.save(folder / "sum.answer.npy", shares.astype(np.float32))
    np.save(folder / "norms.npy", np.ones(shares.shape[1:], dtype=np.float32))
    info = TraceInfo(
        model=model,
        precision=precision,
        compute="float32",
        n=len(samples),
        exchanges=exchanges_digest([sample.exchange for sample in samples]),
        measures=("sum",),
        spans=("answer",),
        dtype="float32",
        weight_bytes=1,
        audit=(),
    )
    (folder / INFO_FILE).write_text(info.model_dump_json(), encoding="utf-8")


def write_files(root):
    """A run with its traces at FP16; traces with a small and a large change, and of new answers."""
    run = synthetic_detect.healthy()
    h, rng = run.h["fp16"], np.random.default_rng(7)

    def traced(name, values, samples=run.samples, **others):
        write_traces(
            root / name, samples, values / values.sum(axis=2, keepdims=True), "nf4", **others
        )

    shares = h / h.sum(axis=2, keepdims=True)
    write_traces(root / "fp16", run.samples, shares, "fp16")
    write_samples(root / "run" / "samples.jsonl", run.samples)
    known, rows = Traces.open(root / "fp16"), Rows(run.samples)
    origin = {"samples": samples_digest(run.samples), "exchanges": known.info.exchanges}
    probes, _ = cross_fit(
        known.features("sum", "answer"),
        rows.y,
        rows.units,
        rows.folds,
        repeats=1,
        max_fraction=0.25,
        provenance=origin,
    )
    probes.save(root / "run" / PROBES_FILE)
    probes.neurons.save(root / "run" / NEURONS_FILE)
    traced("same", h * np.exp(0.01 * rng.standard_normal(h.shape)))
    write_traces(root / "doubled", run.samples, 2 * shares, "nf4")
    traced("noise", h[rng.permutation(len(h))])
    new = [
        s.model_copy(update={"id": f"new {s.id}", "unit": f"new {s.unit}", "prompt_ids": (9, i)})
        for i, s in enumerate(run.samples)
    ]
    write_samples(root / "new.jsonl", new)
    traced("new", h * np.exp(0.3 * rng.standard_normal(h.shape)), new)
    few = new[:40]
    write_samples(root / "few.jsonl", few)
    traced("few", h[:40], few)
    right = [s.model_copy(update={"hallucinated": False}) for s in new]
    write_samples(root / "right.jsonl", right)
    seen = [*new[1:], run.samples[0]]
    write_samples(root / "seen.jsonl", seen)
    traced("seen", h, seen)
    revision = MODEL.model_copy(update={"fingerprint": "another"})
    traced("revision", h * np.exp(0.01 * rng.standard_normal(h.shape)), model=revision)
    larger = MODEL.model_copy(update={"fingerprint": "another", "n_layers": 4, "name": "large"})
    traced("larger", np.concatenate([h, h], axis=1), model=larger)
    write_bundle_of(root)


def write_bundle_of(root):
    """A bundle of the run, as `hq bundle make` writes it, without a model file."""
    samples = read_samples(root / "run" / "samples.jsonl")
    rows, probes = Rows(samples), CrossFit.load(root / "run" / "probes.json")
    scores = Scores.of(probes, Traces.open(root / "fp16").features("sum", "answer"), rows)
    domain = domain_of(samples, rows)
    known = scores.out_of_fold - scores.means[rows.folds] + scores.mean
    area = auroc(scores.out_of_fold, rows.y, rows.folds)
    write_bundle(
        root / "bundle",
        BundleFacts(
            name="tiny",
            hq="0",
            precision="gguf-f16",
            compute="float32",
            prompt="chat",
            model=ModelFile("m.gguf", "f16", 1, "0" * 64, MODEL),
        ),
        probes.neurons,
        {ALL: Domain(domain.threshold(scores, 0.1), 0.1, domain.units(domain.right))},
        Validation(
            auroc=Estimate(value=area, low=area - 0.05, high=area + 0.05, n=30, se=0.025, df=29),
            n=len(samples),
            entities=30,
            hallucinated=int(rows.y.sum()),
            seed=0,
            study="tiny",
            samples="0",
        ),
        {
            "norms": np.ones(len(probes.neurons.neurons), dtype=np.float32),
            "scores": np.sort(known),
            "right": np.sort(known[rows.y == 0]),
        },
        "# tiny\n",
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder with all files; read only."""
    return shared(tmp_path_factory, "drift", write_files)


@pytest.fixture
def drift(hq, files):
    """`hq drift` on the run, or on the bundle."""

    def call(new, *arguments, probe="run", reference=True, wide=True):
        known = ("--reference", files / "fp16") if reference and probe == "run" else ()
        margins = ("--margin", 0.1, "--rate-margin", 0.15) if wide else ()
        return hq("drift", files / probe, *known, "--new", files / new, *margins, *arguments)

    return call


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ("same", Verdict.OK),
        ("doubled", Verdict.THRESHOLD_STALE),
        ("noise", Verdict.SCORER_DEGRADED),
    ],
)
def test_each_verdict_has_its_exit_code(drift, new, verdict):
    outcome = drift(new)
    assert outcome.code == EXIT_CODES[verdict], outcome
    assert f"Verdict: {verdict.value}" in outcome.out
    assert "nf4 compared with fp16 on the same answers: 240 new answers" in outcome.out


def test_narrow_margins_need_more_units(drift):
    outcome = drift("same", "--margin", 1e-5, wide=False)
    assert outcome.code == EXIT_CODES[Verdict.INCONCLUSIVE] == 5
    assert "Verdict: inconclusive (" in outcome.out


def test_the_exit_codes_are_in_the_help(hq):
    text = " ".join(hq("drift", "--help").out.split())
    for verdict, code in EXIT_CODES.items():
        assert f"{code}: {verdict}" in text
    assert len(set(EXIT_CODES.values()) - {1, 2}) == len(Verdict)


def test_json_has_the_numbers_of_an_out_of_fold_evaluation(drift, files):
    outcome = drift("same", "--json")
    found = json.loads(outcome.out)
    assert (found["verdict"], found["exit_code"], found["paired"]) == ("ok", 0, True)
    assert (found["reference"], found["new"]) == ("fp16", "nf4")
    samples, probes = (
        read_samples(files / "run/samples.jsonl"),
        CrossFit.load(files / "run/probes.json"),
    )
    rows = Rows(samples)
    for key, folder in (("auroc_reference", "fp16"), ("auroc", "same")):
        scores = probes.scores(Traces.open(files / folder).features("sum", "answer"), rows.folds)
        assert found[key]["value"] == pytest.approx(auroc(scores, rows.y, rows.folds))
    assert found["promised"] == 0.1
    assert found["false_alarm_change"]["difference"]["value"] == pytest.approx(
        found["false_alarms"]["value"] - 0.1
    )


def test_labels_are_left_out_on_request(drift):
    outcome = drift("noise", "--unlabelled")
    assert outcome.code == EXIT_CODES[Verdict.OK], outcome  # the same scores, of other answers
    assert "ok (threshold only: whether the score still separates needs labels)" in outcome.out
    assert "AUROC" not in outcome.out


@pytest.mark.parametrize("probe", ["run", "bundle"])
def test_new_answers_are_scored_by_the_set_for_use(drift, files, probe):
    labelled = drift("new", "--samples", files / "new.jsonl", "--json", probe=probe)
    found = json.loads(labelled.out)
    assert labelled.code == found["exit_code"]
    assert not found["paired"]
    neurons = NeuronSet.load(files / "run/neurons.json")
    scores = neurons.score(Traces.open(files / "new").features("sum", "answer"))
    y = [sample.hallucinated for sample in read_samples(files / "new.jsonl")]
    assert found["auroc"]["value"] == pytest.approx(auroc(scores, np.array(y, dtype=int)))
    assert found["units"] == 30
    assert (found["shift"]["ks_p"] is None) == (probe == "bundle")
    alone = json.loads(drift("new", "--json", probe=probe).out)
    assert (alone["labelled"], alone["units"], alone["auroc"]) == (False, 240, None)
    assert alone["flagged"]["value"] == pytest.approx(found["flagged"]["value"])


def test_another_revision_is_accepted_on_request(drift):
    refused = drift("revision")
    assert refused.code == 2
    assert "add --revision" in refused.err
    assert drift("revision", "--revision").code == EXIT_CODES[Verdict.OK]


BAD = {
    "another model": (("larger",), {}, "belongs to m"),
    "another model, revision or not": (("larger", "--revision"), {}, "belongs to m"),
    "a bundle of another model": (("larger",), {"probe": "bundle"}, "The bundle tiny belongs to m"),
    "no reference": (("same",), {"reference": False}, "needs --reference"),
    "a reference for a bundle": (("new", "--false-alarms", 0.1), {"probe": "bundle"}, "leave out"),
    "answers that the bundle was fitted on": (("same",), {"probe": "bundle"}, "were fitted on"),
    "few units": (("few", "--samples", "few.jsonl"), {}, "about 5 independent units"),
    "one class": (("new", "--samples", "right.jsonl"), {}, "no hallucinated answers"),
    "other samples": (("same", "--samples", "new.jsonl"), {}, "other labels, units or folds"),
    "samples of another trace": (("new", "--samples", "few.jsonl"), {}, "other token ids"),
    "questions that were seen": (("seen", "--samples", "seen.jsonl"), {}, "'q0' first"),
    "a rate for which units are few": (("same", "--false-alarms", 0.01), {}, "in 99 units"),
    "an unfinished trace": (("run",), {}, "holds no finished trace"),
    "a margin of zero": (("same", "--margin", 0), {}, "margin 0.0 is not a positive number"),
}


@pytest.mark.parametrize("case", BAD, ids=BAD)
def test_bad_input_is_one_sentence(drift, files, case):
    (new, *arguments), options, words = BAD[case]
    arguments = [files / a if str(a).endswith(".jsonl") else a for a in arguments]
    outcome = drift(new, *arguments, wide=False, **options)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert words in outcome.err, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_probes_of_another_fit_are_an_error(drift, files, hq, tmp_path):
    shutil.copytree(files / "run", tmp_path / "run")
    neurons = NeuronSet.load(tmp_path / "run" / "neurons.json")
    neurons.model_copy(update={"intercept": 9.0}).save(tmp_path / "run" / "neurons.json")
    outcome = hq("drift", tmp_path / "run", "--reference", files / "fp16", "--new", files / "same")
    assert outcome.code == 2
    assert "are of different fits" in outcome.err


@pytest.fixture
def stages(finished, tmp_path):
    shutil.copytree(finished / "cache", tmp_path / "cache")


@pytest.mark.usefixtures("stages")
def test_the_experiment_leaves_its_tables(hq, tiny_study, tmp_path):
    options = ("run", tiny_study, "-e", "drift", "--quiet")
    ran = hq(*options)
    assert ran.code == 0, ran.err
    assert "The FP16 probe at other precisions" in ran.out
    run = tmp_path / "runs" / "tiny-drift"
    rows = read_table(run, "drift")
    assert rows["precision"].to_list() == ["nf4"]
    assert rows["verdict"][0] in set(Verdict)
    repairs = read_table(run, "repair")
    assert set(repairs["method"]) == {*METHODS, "labels"}
    frozen = repairs.filter(repairs["method"] == "none")
    assert frozen["gain"].to_list() == [0] * len(frozen)
    assert frozen["auroc"].to_list() == pytest.approx([rows["auroc"][0]] * len(frozen))
    assert frozen["false_alarms"].to_list() == pytest.approx(
        [rows["false_alarms"][0]] * len(frozen)
    )
    assert rows["auroc_change"].to_list() == pytest.approx((-frozen["lost"][:1]).to_list())
    gain = repairs["auroc"] - rows["auroc"][0]
    assert repairs["gain"].to_list() == pytest.approx(gain.to_list(), abs=1e-5)
    files = [f"{name}.csv" for name in TABLES] + ["tables.md", "provenance.json", "neurons.json"]
    before = {name: (run / name).read_bytes() for name in files}
    assert '"repair"' in hq(*options, "--json").out
    assert {name: (run / name).read_bytes() for name in files} == before
    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0


@pytest.mark.usefixtures("stages")
def test_one_precision_cannot_drift(hq, tiny_study, tmp_path):
    ran = hq("run", tiny_study, "-e", "drift", "--precisions", "fp16", "--quiet")
    assert ran.code == 2
    assert "give one or more, as --precisions fp16,nf4" in ran.err
    assert not (tmp_path / "runs").exists()
