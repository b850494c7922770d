"""`hq bundle`: making, verifying and showing a bundle, and rejected input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("llama_cpp")

from harness.deploy.bundling import SAMPLES_FILE, FinishedRun
from harness.deploy.model_card import model_card
from harness.experiments.detect.alarms import alarms
from harness.stages.alarms import Scores
from harness.stages.identify import NEURONS_FILE, PROBES_FILE, Rows
from harness.stages.samples import read_samples, samples_digest, write_samples
from hq.backends.llamacpp.backend import LlamaBackend
from hq.gguf.file import GGUFFile
from hq.gguf.quantize import quantize
from hq.gguf.write import write_gguf
from hq.models.checkpoint import checkpoint_identity
from hq.monitor.bundle import ALL, Bundle
from hq.neurons.neuron_set import NeuronSet
from hq.stats.auroc import estimate_auroc
from hq.stats.conformal import conformal_threshold
from hq.stats.intervals import Estimate
from hq.storage.verified_folder import MANIFEST

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(ROOT.glob("results/*/bundle"))


@pytest.fixture(scope="module")
def files(tiny_study, tmp_path_factory):
    """The tiny study's model as GGUF, at F32 and Q8_0."""
    folder, model = tmp_path_factory.mktemp("gguf"), tiny_study.parent / "model"
    write_gguf(model, folder / "f32.gguf", "f32", checkpoint_identity(model))
    quantize(folder / "f32.gguf", folder / "q8_0.gguf", "q8_0")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished / "runs" / "tiny", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def make(hq, run, files):
    """`hq bundle make`, into `bundle`."""

    def call(*arguments, **changed):
        options = {"run": run, "gguf": files["q8_0"], "into": "bundle", "threads": 1} | changed
        named = [part for name, value in options.items() for part in (f"--{name}", value)]
        return hq("bundle", "make", *named, *arguments, "--quiet")

    return call


def is_one_sentence(outcome, words):
    assert outcome.code == 2, outcome
    assert outcome.out.strip() == ""
    assert words in outcome.err, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err


@pytest.fixture(scope="module")
def read(finished, files):
    """The run, and the features of its samples in the Q8_0 file."""
    found = FinishedRun.open(finished / "runs" / "tiny")
    neurons = found.neurons
    values = np.empty((len(found.samples), neurons.model.n_neurons), dtype=np.float32)
    with LlamaBackend(files["q8_0"], threads=1) as backend:
        for batch in backend.trace([s.exchange for s in found.samples], (neurons.cett,)):
            features = batch.features(neurons.cett, neurons.tokens)
            values[batch.rows] = features.values
    return found, replace(features, values=values)


def test_a_bundle_of_a_run(make, files, read):
    outcome = make("--false-alarms", 0.2)
    assert outcome.code == 0, outcome
    assert "all: 0.2 promised, by" in outcome.out
    bundle, file = Bundle.load(Path("bundle")), GGUFFile(files["q8_0"])
    bundle.require(file)
    found, _ = read
    assert (bundle.name, bundle.precision, bundle.prompt) == ("tiny", "gguf-source", "few-shot")
    assert bundle.neurons == found.neurons
    assert bundle.facts.model.name == "q8_0.gguf"
    assert bundle.facts.model.storage == "q8_0"
    np.testing.assert_array_equal(bundle.norms, file.norms.ravel()[found.neurons.flat])


def test_its_threshold_is_the_conformal_threshold_of_out_of_fold_scores(make, read):
    assert make("--false-alarms", 0.2).code == 0
    bundle, (found, features) = Bundle.load(Path("bundle")), read
    rows = Rows(found.samples)
    scores = np.empty(len(rows.y))
    for fold, of_fold in enumerate(found.probes.folds):
        values, inside = of_fold.probe.score(features), rows.folds == fold
        scores[inside] = values[inside] - values[~inside].mean()
    scores += found.neurons.score(features).mean()  # on the scale of the set for use
    right = rows.y == 0
    domain = bundle.domain()
    expected = conformal_threshold(scores[right], 0.2, rows.units[right])
    assert domain.threshold == pytest.approx(expected, abs=1e-5)
    by_set = conformal_threshold(found.neurons.score(features)[right], 0.2, rows.units[right])
    assert abs(domain.threshold - by_set) > 1e-3  # the set has seen these answers
    assert domain.n == len(np.unique(rows.units[right]))
    np.testing.assert_allclose(bundle.right, np.sort(scores[right]), atol=1e-5)
    np.testing.assert_allclose(bundle.scores, np.sort(scores), atol=1e-5)


def test_its_validation_is_out_of_fold(make, read):
    """Figures are those of the study's own tables, at this precision."""
    assert make("--false-alarms", 0.2).code == 0
    bundle, (found, features) = Bundle.load(Path("bundle")), read
    rows, validation = Rows(found.samples), bundle.validation
    scores = Scores.of(found.probes, features, rows)
    area = estimate_auroc(scores.out_of_fold, rows.y, rows.units, rows.folds)
    assert validation.auroc.value == pytest.approx(area.value, abs=0.005)
    seen = estimate_auroc(found.neurons.score(features), rows.y, rows.units)
    assert seen.value - validation.auroc.value > 0.05
    assert (validation.n, validation.hallucinated) == (len(rows.y), rows.y.sum())
    assert validation.entities == len(np.unique(rows.units)) == area.n
    assert validation.samples == samples_digest(found.samples)
    table = {
        row.domain: row
        for row in alarms(found.samples, rows, scores, scores, "gguf-q8_0")
        if row.promised == 0.2
    }
    assert table.keys() == bundle.domains.keys() == {ALL}
    domain, row = bundle.domain(), table[ALL]
    assert domain.threshold == pytest.approx(row.threshold_recalibrated, abs=1e-5)
    assert domain.realised.value == pytest.approx(row.false_alarms_recalibrated.value, abs=0.02)
    assert domain.detected.value == pytest.approx(row.detected_recalibrated.value, abs=0.02)


def test_the_same_bundle_is_the_same_bytes(make):
    assert make(into="one").code == make(into="two").code == 0
    for path in Path("one").iterdir():
        assert path.read_bytes() == (Path("two") / path.name).read_bytes(), path.name


def test_it_is_verified_and_shown(make, hq, files):
    assert make("--precision", "gguf-q8_0", "--name", "mine").code == 0
    digest = Bundle.load(Path("bundle")).digest
    for options in ((), ("--gguf", files["q8_0"])):
        outcome = hq("bundle", "verify", "bundle", *options)
        assert (outcome.code, digest in outcome.out) == (0, True), outcome
    card = hq("bundle", "show", "bundle").out
    for words in ("mine", "q8_0.gguf", "What it promises", "about 0.1", "does not promise"):
        assert words in card, card
    said = json.loads(hq("bundle", "show", "bundle", "--json").out)
    assert said["digest"] == digest
    assert (said["name"], said["precision"]) == ("mine", "gguf-q8_0")
    assert said["domains"][ALL]["threshold"] == Bundle.load(Path("bundle")).domain().threshold


def test_another_model_file_and_a_tampered_bundle_are_rejected(make, hq, files):
    assert make().code == 0
    is_one_sentence(
        hq("bundle", "verify", "bundle", "--gguf", files["f32"]), "another file of that model"
    )
    Path("bundle/domains.json").write_text("{}", encoding="utf-8")
    is_one_sentence(hq("bundle", "verify", "bundle"), "domains.json was changed")
    is_one_sentence(hq("bundle", "show", "bundle"), "domains.json was changed")
    is_one_sentence(hq("bundle", "show", "nowhere"), "nowhere cannot be read")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"run": "nowhere"}, "nowhere has no readable provenance"),
        ({"gguf": "nowhere.gguf"}, "nowhere.gguf"),
        (
            {"false-alarms": 0.001},
            "needs right answers in 999 units outside of each fold, and there are",
        ),
        ({"false-alarms": 0}, "not between 0 and 1"),
        ({"false-alarms": "nan"}, "not between 0 and 1"),
        ({"name": "../up"}, "is not a valid name"),
        ({"precision": "gguf-q4_0"}, "name the precision that it has"),
    ],
)
def test_bad_input_is_one_sentence(make, changed, words):
    is_one_sentence(make(**changed), words)
    assert not Path("bundle").exists()


def test_an_existing_folder_is_left_alone(make):
    Path("bundle").mkdir()
    is_one_sentence(make(), "is there already")
    assert list(Path("bundle").iterdir()) == []


def test_a_file_of_another_model_is_rejected(make, gguf):
    is_one_sentence(make(gguf=gguf("llama")), "The run belongs to")


def with_fewer_samples(run):
    samples = read_samples(run / SAMPLES_FILE)
    write_samples(run / SAMPLES_FILE, samples[:-1])


def in_other_folds(run):
    samples = read_samples(run / SAMPLES_FILE)
    turned = [s.model_copy(update={"fold": (s.fold + 1) % 3}) for s in samples]
    write_samples(run / SAMPLES_FILE, turned)


def with_old_samples(run):
    rows = [
        json.loads(s.model_dump_json(exclude={"unit", "fold"}))
        for s in read_samples(run / SAMPLES_FILE)
    ]
    lines = [json.dumps(row | {"split": "test", "component": row["id"]}) + "\n" for row in rows]
    (run / SAMPLES_FILE).write_text("".join(lines), encoding="utf-8")


def truncated(run):
    path = run / PROBES_FILE
    path.write_text(path.read_text(encoding="utf-8")[:-100], encoding="utf-8")


def of_another_model(run):
    path = run / PROBES_FILE
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"fingerprint": "', '"fingerprint": "0'), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (with_fewer_samples, "found on other answers"),
        (in_other_folds, "found on other answers"),
        (with_old_samples, "is not a sample: unit: Field required"),
        (lambda run: (run / SAMPLES_FILE).unlink(), "There is no samples file"),
        (lambda run: (run / PROBES_FILE).unlink(), "probes.json does not hold the probes"),
        (truncated, "probes.json does not hold the probes"),
        (of_another_model, "The run belongs to"),
    ],
)
def test_a_run_with_damaged_or_foreign_files_is_rejected(make, run, damage, words):
    damage(run)
    is_one_sentence(make(), words)
    assert not Path("bundle").exists()


def test_a_sweep_is_rejected(make, run):
    facts = json.loads((run / "provenance.json").read_text(encoding="utf-8")) | {"kind": "sweep"}
    (run / "provenance.json").write_text(json.dumps(facts), encoding="utf-8")
    is_one_sentence(make(), "is not the run of a study")


def test_a_kill_leaves_no_bundle(make, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("hq.storage.atomic.os.fsync", fail)
    assert make().code == 2
    assert [path.name for path in Path().iterdir() if "bundle" in path.name] == []


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.parent.name)
def test_a_committed_bundle_is_intact_and_of_its_study(folder):
    bundle = Bundle.load(folder)
    assert bundle.name == bundle.validation.study == folder.parent.name
    committed = folder.parent / NEURONS_FILE
    assert bundle.neurons == NeuronSet.load(committed)
    facts = json.loads((folder.parent / "provenance.json").read_text(encoding="utf-8"))
    assert bundle.neurons.model.fingerprint == facts["fingerprint"]


def test_there_are_committed_bundles():
    assert [folder.parent.name for folder in COMMITTED] == ["smollm2-knowledge"]
    assert all((folder / MANIFEST).is_file() for folder in COMMITTED)


@pytest.mark.slow
@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.parent.name)
def test_a_committed_bundle_is_for_the_embedded_file(folder, hq):
    outcome = hq("bundle", "verify", folder, "--gguf", "smollm2")
    assert outcome.code == 0, outcome


def test_a_committed_bundle_agrees_with_its_table():
    folder = ROOT / "results" / "smollm2-knowledge"
    domain = Bundle.load(folder / "bundle").domain()
    row = (
        pl.read_csv(folder / "alarms.csv")
        .filter(
            pl.col("precision") == "gguf-source",
            pl.col("domain") == ALL,
            pl.col("promised") == domain.false_alarms,
        )
        .row(0, named=True)
    )
    assert domain.n == row["units"]
    assert domain.threshold == pytest.approx(row["threshold_recalibrated"], abs=0.01)
    assert domain.realised.value == pytest.approx(row["false_alarms_recalibrated"], abs=0.02)
    assert domain.detected.value == pytest.approx(row["detected_recalibrated"], abs=0.02)


def test_the_card_warns_if_the_probe_may_be_at_chance(make):
    assert make().code == 0
    bundle = Bundle.load(Path("bundle"))
    parts = bundle.facts, bundle.neurons, bundle.domains
    assert model_card(*parts, bundle.validation) == bundle.card
    chance, above = (Estimate(value=0.6, low=low, high=0.7, n=30) for low in (0.45, 0.55))
    text = model_card(*parts, replace(bundle.validation, auroc=chance))
    assert "may be no better than chance" in text
    assert "may be no better" not in model_card(*parts, replace(bundle.validation, auroc=above))
    assert max(len(line) for line in text.splitlines() if line[:1] not in "|-") <= 100


def test_a_combined_bundle_scores_both(make, hq, finished):
    assert make("--false-alarms", 0.2, "--scorer", "combined").code == 0
    bundle = Bundle.load(Path("bundle"))
    validation, combination = bundle.validation, bundle.facts.combination
    assert combination is not None
    assert validation.auroc == validation.combined
    alone = make("--false-alarms", 0.2, into="alone")
    assert alone.code == 0
    assert "Of the same answers: token entropy" in alone.out
    of_probe = Bundle.load(Path("alone"))
    assert of_probe.facts.combination is None
    assert of_probe.validation.auroc == validation.probe
    for name in ("entropy", "log_probability", "uncertainty", "probe", "combined"):
        assert getattr(of_probe.validation, name) == getattr(validation, name)
    assert "with the entropy of each prediction" in " ".join(bundle.card.split())
    assert "Its score is that of these neurons" in of_probe.card
    assert bundle.domain().threshold != of_probe.domain().threshold
    traces = next((finished / "cache" / "store").glob("trace-*/"))
    is_one_sentence(hq("drift", "bundle", "--new", traces), "have no probabilities")
