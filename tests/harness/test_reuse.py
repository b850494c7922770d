"""What a finished study's outputs are reused for, what computes them again, and what they say."""

import json
import shutil
from dataclasses import replace
from importlib import metadata

import pytest

from harness.experiments import EXPERIMENTS
from harness.experiments.run import load_study, provenance_of
from harness.experiments.sweep.nodes import SweepNodes
from harness.experiments.sweep.plan import SweepPlan
from harness.judges.rules import RuleJudge
from harness.stages import gguf, identify, mapping, sample, trace
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE
from harness.stages.materials import Materials
from harness.store import environment
from harness.store.progress import Progress
from harness.store.runner import Runner
from harness.store.store import Store
from hq.backends.opening import open_backend
from hq.neurons.neuron_set import NeuronSet


class ModelLoadedError(AssertionError):
    """A node was not reused."""


class Opened:
    """A study over a store: its shared nodes, and the folders of those that are there."""

    def __init__(self, study, store):
        self.m = Materials(study)
        self.graph = Graph(self.m)
        self.runner = Runner(store, Progress(quiet=True), self.m)

    def folder(self, node):
        """A node's output; computed if it can be without a model."""
        return self.runner.run([node])[node]

    @property
    def samples(self):
        return self.graph.read_samples(self.runner.run([self.graph.samples]))

    @property
    def responses(self):
        return self.folder(self.graph.responses)

    def neurons(self, precision):
        return NeuronSet.load(self.folder(self.graph.identify(precision)) / NEURONS_FILE)


@pytest.fixture
def opened(finished, own_study, tmp_path, monkeypatch):
    """Opens a changed copy of the finished study, where no model may be loaded."""
    shutil.copytree(finished / "cache" / "store", tmp_path / "store")

    def no_model(*_, **__):
        raise ModelLoadedError

    def open_study(*overrides):
        study = load_study(str(own_study)).overridden(overrides)
        return Opened(study, Store(tmp_path / "store"))

    monkeypatch.setattr("harness.stages.loading.open_backend", no_model)
    return open_study


def newer(monkeypatch, package):
    monkeypatch.setattr(
        environment, "version", lambda name: "99" if name == package else metadata.version(name)
    )


def edit(path, **changes):
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )


def everything(one):
    return one.runner.run(EXPERIMENTS["detect"].nodes(one.m))


def test_a_copy_elsewhere_is_reused(opened):
    assert everything(opened())


def test_a_raised_version_of_a_stage_computes_again(opened, monkeypatch):
    monkeypatch.setattr(trace, "STAGE", replace(trace.STAGE, version=99))
    with pytest.raises(ModelLoadedError):
        everything(opened())


@pytest.mark.parametrize("quota", [20, 1000], ids=["a smaller quota", "a larger quota"])
def test_responses_serve_another_quota(quota, opened):
    before, after = opened(), opened(f"sampling.quota={quota}")
    assert after.samples != before.samples
    assert after.responses != before.responses


def test_responses_serve_other_folds(opened):
    before, after = opened(), opened("identify.folds=4")
    assert after.samples != before.samples
    assert after.responses == before.responses


def test_a_quota_that_keeps_the_same_samples_keeps_the_traces(opened, monkeypatch):
    before = opened("sampling.quota=1000")
    with monkeypatch.context() as patch:
        patch.setattr("harness.stages.loading.open_backend", open_backend)
        traced = before.folder(before.graph.trace("fp16"))
        fitted = before.folder(before.graph.identify("fp16"))
        before.m.models.close()
    after = opened("sampling.quota=2000")
    assert after.responses != before.responses
    assert after.samples == before.samples
    assert after.folder(after.graph.trace("fp16")) == traced
    assert after.folder(after.graph.identify("fp16")) == fitted


def test_a_new_question_other_shots_and_another_sampler_ask_again(opened, own_study):
    for override in ("sampling.temperature=0.5", 'prompt.shots=[["a", "c"]]'):
        with pytest.raises(ModelLoadedError):
            _ = opened(override).responses
    questions = own_study.parent / "questions.jsonl"
    questions.write_text(
        questions.read_text(encoding="utf-8") + '{"question": "One more?", "aliases": ["x"]}\n',
        encoding="utf-8",
    )
    with pytest.raises(ModelLoadedError):
        _ = opened().responses


@pytest.mark.parametrize("package", ["torch", "transformers", "tokenizers", "numpy"])
def test_another_version_of_what_runs_the_model_asks_again(package, opened, monkeypatch):
    newer(monkeypatch, package)
    with pytest.raises(ModelLoadedError):
        _ = opened().responses


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"rms_norm_eps": 1e-3}),
        ("generation_config.json", {"eos_token_id": [0, 7]}),
        ("tokenizer_config.json", {"clean_up_tokenization_spaces": True}),
    ],
)
def test_another_config_with_the_same_weights_asks_again(file, changes, opened, own_study):
    before = opened().m.model
    edit(own_study.parent / "model" / file, **changes)
    assert opened().m.model == before
    with pytest.raises(ModelLoadedError):
        _ = opened().responses


def test_another_judge_asks_again(opened, monkeypatch):
    monkeypatch.setattr(RuleJudge, "identity", "rules, version 99")
    with pytest.raises(ModelLoadedError):
        _ = opened().responses


def test_another_bitsandbytes_touches_only_what_it_computes(opened, monkeypatch):
    newer(monkeypatch, "bitsandbytes")
    one = opened()
    assert one.neurons("fp16")
    with pytest.raises(ModelLoadedError):
        one.folder(one.graph.trace("nf4"))


def test_another_solver_fits_again_on_the_same_traces(opened, monkeypatch):
    before = opened()
    trace_node, fit = before.graph.trace("nf4"), before.graph.identify("nf4")
    traced, fitted, neurons = before.folder(trace_node), before.folder(fit), before.neurons("nf4")
    newer(monkeypatch, "skglm")
    after = opened()
    assert after.folder(after.graph.trace("nf4")) == traced
    assert after.folder(after.graph.identify("nf4")) != fitted
    assert after.neurons("nf4") == neurons


def test_provenance_says_what_the_outputs_were_made_from(opened):
    one, detect = opened(), EXPERIMENTS["detect"]
    nodes = detect.nodes(one.m)
    outputs = one.runner.run(nodes)
    facts = provenance_of(one.m, detect, nodes, outputs)
    made = facts["nodes"]
    responses = made["sample fp16"]["parameters"]["responses"]
    assert responses["device"] == "cpu"
    assert responses["compute"] == "float32"
    assert responses["packages"]["torch"] == metadata.version("torch")
    assert "bitsandbytes" not in responses["packages"]
    assert responses["judge"] == RuleJudge.identity
    assert responses["stop_tokens"] == [0]
    assert set(responses["files"]) >= {"config.json", "tokenizer.json"}
    assert "bitsandbytes" in made["trace nf4"]["parameters"]["packages"]
    assert made["identify fp16"]["packages"]["skglm"] == metadata.version("skglm")
    assert made["identify fp16"]["version"] == identify.STAGE.version
    assert made["trace fp16"]["inputs"]["tokens"] == made["trace nf4"]["inputs"]["tokens"]
    assert {node.get("precision") for node in made.values()} == {"fp16", "nf4"}
    # What is reported was written when the output was made, not when it is reported.
    record = outputs[mapping.node(one.m, "nf4")] / "node.json"
    changed = json.loads(record.read_text(encoding="utf-8"))
    changed["parameters"]["machine"] = "the one that computed"
    record.write_text(json.dumps(changed), encoding="utf-8")
    facts = provenance_of(one.m, detect, nodes, outputs)
    assert facts["nodes"]["map nf4"]["parameters"]["machine"] == "the one that computed"
    assert sample.STAGE.name in {node["stage"] for node in facts["nodes"].values()}


@pytest.fixture
def sweep(opened, own_study):
    """Declares the nodes of a sweep of the study with a trial of a false premise and a dialogue."""
    rows = [{"question": f"Why is {i} odd?", "false_premise": 1} for i in range(20)]
    path = own_study.parent / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def declare(form="few-shot"):
        section = {"scenarios": ["falseqa"], "sources": {"falseqa": str(path)}, "form": form}
        study = load_study(str(own_study)).changed(sections={"sweep": section})
        return SweepNodes(Materials(study).of(SweepPlan))

    return declare


def test_another_answer_to_a_trial_judges_again_and_asks_again(sweep):
    before, after = sweep(), sweep()
    trials = after.plan.offered["falseqa"]
    trials[0] = replace(trials[0], aliases=("another",))
    for node in ("ask", "targets"):
        assert getattr(before, node)("falseqa").identity != getattr(after, node)("falseqa").identity
    # The same trials count, in the same words: their record alone would not tell.
    parameters = [nodes.targets("falseqa").parameters for nodes in (before, after)]
    assert parameters[0] != parameters[1]
    assert sweep().targets("falseqa").identity == before.targets("falseqa").identity


def test_another_chat_template_asks_again(sweep, own_study):
    identities = []
    for words in ("", "Please. "):
        template = f"{{% for m in messages %}}{words}{{{{ m.content }}}}{{% endfor %}}"
        path = own_study.parent / "model" / "chat_template.jinja"
        path.write_text(template, encoding="utf-8")
        identities.append(sweep("chat").ask("falseqa").identity)
    assert identities[0] != identities[1]


@pytest.mark.parametrize("file", ["generation_config.json", "chat_template.jinja", "merges.txt"])
def test_every_file_that_is_written_to_a_gguf_file_is_in_its_key(file, opened, own_study):
    before = gguf.node(opened().m, "gguf-q4_k_m").identity
    (own_study.parent / "model" / file).write_text('{"eos_token_id": 1}', encoding="utf-8")
    assert gguf.node(opened().m, "gguf-q4_k_m").identity != before
