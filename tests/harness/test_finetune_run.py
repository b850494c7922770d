"""`hq finetune` on the tiny study: tables, exports, kills, and what it refuses."""

import json
import shutil
import signal
import sys

import pytest
import torch

from harness.experiments.finetune.tables import TABLES
from harness.tables.files import read_table
from hq.models.checkpoint import checkpoint_identity
from hq.neurons.neuron_set import NeuronSet
from hq.precisions.base import from_pretrained
from tests.harness.killing import Killer, needs_sigkill

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's

FILES = [f"{name}.csv" for name in TABLES] + ["tables.md", "provenance.json", "README.md"]
SECTION = """
[finetune]
rank = 2
steps = 6
every = 2
batch = 2
examples = 8
trials = 8
questions = 16
learning_rate = 0.01
stop = 100.0
scenarios = ["triviaqa", "falseqa", "jailbreak"]

[sweep]
form = "few-shot"
scenarios = ["triviaqa", "falseqa", "jailbreak"]
choices = {choices}
sources = {{falseqa = {falseqa}, jailbreak = {jailbreak}}}
"""


@pytest.fixture
def study(tiny_study, finished, tmp_path):
    """The tiny study with a section [finetune], its stages done."""
    rows = {
        "falseqa": [{"question": f"Why did {i} leave?", "false_premise": 1} for i in range(40)],
        "jailbreak": [{"prompt": f"Do {i}."} for i in range(40)],
        "choices": [
            {"id": f"c{i}", "question": f"Which {i}?", "choices": list("wxyz"), "answer": i % 4}
            for i in range(40)
        ],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    files = {name: json.dumps(str(tmp_path / f"{name}.jsonl")) for name in rows}
    path = tmp_path / "study.toml"
    path.write_text(
        tiny_study.read_text(encoding="utf-8") + SECTION.format(**files), encoding="utf-8"
    )
    shutil.copytree(finished / "cache", tmp_path / "cache")
    return path


def test_a_run_leaves_tables_and_a_model_that_agree(hq, study, tiny_study, tmp_path):
    ran = hq("finetune", study, "--quiet")
    assert ran.code == 0, ran.err
    run = tmp_path / "runs" / "tiny-finetune"
    behaviour = read_table(run, "behaviour")
    assert behaviour.height == 2 * 3 * 3
    assert set(behaviour["arm"]) == {"h-neurons", "matched", "plain"}
    for row in behaviour.iter_rows(named=True):
        assert row["change"] == pytest.approx(row["after"] - row["before"])
        assert (row["beyond_matched"] is None) == (row["arm"] == "matched")
    moved = read_table(run, "moved")
    same = moved.filter((moved["arm"] == "base") & (moved["precision"] == "fp16"))
    assert same["jaccard"].to_list() == [1.0]
    assert same["layer_shift"].to_list() == [0.0]
    capability = read_table(run, "capability")
    assert (capability.filter(capability["arm"] == "base")["loss_change"] == 0).all()
    assert capability["perplexity"].n_unique() == 8
    training = read_table(run, "training")
    assert training.height == 3 * 6
    assert training.filter(training["arm"] == "plain")["penalty"].sum() == 0
    assert training.filter(training["kept"] == 1)["step"].to_list() == [6, 6, 6]

    base = tiny_study.parent / "model"
    provenance = json.loads((run / "model" / "finetune.json").read_text(encoding="utf-8"))
    assert provenance["base"]["fingerprint"] == checkpoint_identity(base).fingerprint
    assert provenance["arm"] == "h-neurons"
    h = NeuronSet.load(run / "neurons.json").positive
    assert provenance["penalised_neurons"] == [[n.layer, n.index] for n in h]
    ids = torch.randint(1, 60, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = from_pretrained(base, torch.device("cpu"), dtype=torch.float32)
        before = plain(ids).logits
        adapted = peft.PeftModel.from_pretrained(plain, run / "adapter")(ids).logits
        merged = from_pretrained(run / "model", torch.device("cpu"), dtype=torch.float32)
        after = merged(ids).logits
    change = (adapted - before).abs().max()
    assert change > 1e-3
    torch.testing.assert_close(after, adapted, atol=0.05 * float(change), rtol=0)
    assert (run / "adapter.gguf").stat().st_size > 1000
    assert "| fp16 | triviaqa |" in (run / "README.md").read_text(encoding="utf-8")

    files = {name: (run / name).read_bytes() for name in FILES}
    assert hq("finetune", study, "--quiet").code == 0
    assert {name: (run / name).read_bytes() for name in FILES} == files
    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0
    other = hq("finetune", study, "--quiet", "--set", "finetune.steps=7")
    assert other.code == 2
    assert "results of a run of other settings (finetune)" in other.err
    reported = hq("report", run)
    assert reported.code == 0, reported.err


@needs_sigkill
@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("hq.tuning.state write_whole", 2),  # after the first of three checkpoints
        ("hq.tuning.merging save_file", 2),  # while the second merged model is written
    ],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_adapters(
    hq, study, tmp_path, monkeypatch, function, call
):
    """kill -9, then the same command: the same adapters, tables and card, byte for byte."""
    command = ["finetune", str(study), "--quiet", "--precisions", "fp16", "--into"]
    other, whole, killed = (tmp_path / name for name in ("other", "whole", "killed"))
    shutil.copytree(tmp_path / "cache", other)
    with Killer(tmp_path) as killer:
        assert killer.run(function, call, *command, killed) == -signal.SIGKILL
    assert not killed.exists()
    states = list((tmp_path / "cache" / "store").glob("finetune-*.partial/state.safetensors"))
    assert len(states) == (1 if "state" in function else 0)
    assert hq(*command, killed).code == 0
    monkeypatch.setenv("HQ_CACHE", str(other))
    assert hq(*command, whole).code == 0
    for file in (p for p in whole.rglob("*") if p.is_file()):
        assert (killed / file.relative_to(whole)).read_bytes() == file.read_bytes(), file


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--set", "finetune.stepz=3"), "stepz"),
        (("--set", "finetune.targets=['attention']"), "targets"),
        (("--set", "finetune.targets=[]"), "name one of gate, up and down"),
        (("--set", "finetune.batch=3"), "batch"),
        (("--set", "finetune.penalty=cubic"), "penalty"),
        (("--set", "finetune.scenarios=['falsqa']"), "did you mean 'falseqa'"),
        (("--set", "finetune.text=none.txt"), "neutral text none.txt cannot be read"),
        (("--set", "finetune.share=0.0001"), "No question lies in the components"),
        (("--precisions", "gguf-source"), "gguf"),
    ],
)
def test_bad_input_is_one_sentence_before_training(hq, study, tmp_path, options, sentence):
    refused = hq("finetune", study, "--quiet", *options)
    assert refused.code == 2
    assert sentence in refused.err
    assert "Traceback" not in refused.err
    assert not list((tmp_path / "cache" / "store").glob("finetune-*"))
    assert not (tmp_path / "runs").exists()


def test_training_data_of_one_class_are_an_error_before_training(hq, study, tmp_path):
    """The scenario jailbreak alone has refusals, and no right answers."""
    refused = hq(
        "finetune", study, "--quiet", "--precisions", "fp16",
        "--set", "finetune.scenarios=['jailbreak']", "--set", "sweep.scenarios=['jailbreak']",
        "--set", "sweep.sources.falseqa=''",
    )  # fmt: skip
    assert refused.code == 2
    assert "no right answers" in refused.err or "falseqa" in refused.err
    assert not list((tmp_path / "cache" / "store").glob("finetune-*"))


def test_a_missing_package_is_one_sentence(hq, study, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused = hq("finetune", study, "--quiet")
    assert refused.code == 2
    assert "pip install 'hq[finetune]'" in refused.err


def test_nothing_is_trained_on_that_is_evaluated(study, tmp_path, monkeypatch):
    from harness.experiments.finetune.plan import FinetunePlan
    from harness.stages.materials import Materials
    from harness.studies.study import Study

    plan = FinetunePlan(Materials(Study.load(str(study))))
    items = [*plan.m.questions, *plan.choices]
    items += [trial for trials in plan.trials.offered.values() for trial in trials]
    training = {i.id for i in items if plan.is_training(i.id)}
    reserved = {p.question.id for p in plan.m.prompted if p.part != "sample"}
    assert training
    assert training.isdisjoint(reserved | {choice.id for choice in plan.choices})
    others = [item for item in items if item.id not in training]
    shared = {e for i in items if i.id in training for e in i.entities}
    assert shared.isdisjoint(e for item in others for e in item.entities)
    wordings = {i.wording for i in items if i.id in training}
    assert wordings.isdisjoint(item.wording for item in others)
