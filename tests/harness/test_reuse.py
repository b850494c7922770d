"""What a finished study's artefacts are reused for, what makes them anew, and what they say."""

import json
import shutil
from dataclasses import replace
from importlib import metadata

import pytest

from harness.experiments.detect.outcome import built_from, write
from harness.experiments.pipeline import Pipeline
from harness.judges.rules import RuleJudge
from harness.stages import trace
from harness.store import environment
from harness.store.progress import Progress
from harness.store.store import Store, inputs_of
from harness.studies.study import Study


class ModelLoadedError(AssertionError):
    """A stage was not reused."""


@pytest.fixture
def opened(finished, own_study, tmp_path, monkeypatch):
    """Opens a changed copy of the finished study, where no model may be loaded."""
    shutil.copytree(finished / "cache" / "store", tmp_path / "store")

    def no_model(*_, **__):
        raise ModelLoadedError

    def open_study(**sections):
        plan = Study.load(str(own_study))
        changed = {
            name: getattr(plan, name).model_copy(update=values) for name, values in sections.items()
        }
        return Pipeline(plan.changed(**changed), Store(tmp_path / "store"), Progress(quiet=True))

    monkeypatch.setattr("harness.stages.variants.open_backend", no_model)
    return open_study


def newer(monkeypatch, package):
    monkeypatch.setattr(
        environment, "version", lambda name: "99" if name == package else metadata.version(name)
    )


def test_a_raised_version_of_a_stage_makes_its_artefacts_again(opened, monkeypatch):
    monkeypatch.setattr(trace, "STAGE", replace(trace.STAGE, version=99))
    with pytest.raises(ModelLoadedError):
        opened().tables()


def edit(path, **changes):
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )


def test_a_copy_elsewhere_is_found_again(opened):
    assert opened().tables()


@pytest.mark.parametrize(
    "sections",
    [
        {"sampling": {"quota": 20}},
        {"sampling": {"quota": 1000}},
        {"split": {"train": 0.3, "calibration": 0.3, "test": 0.4}},
    ],
    ids=["a smaller quota", "a larger quota", "another split"],
)
def test_responses_serve_another_quota_and_another_split(sections, opened):
    before, pipeline = opened(), opened(**sections)
    assert pipeline.samples != before.samples
    assert pipeline.responses != before.responses


def test_a_new_question_other_shots_and_another_sampler_ask_again(opened, own_study):
    for changed in ({"sampling": {"temperature": 0.5}}, {"prompt": {"shots": (("a", "c"),)}}):
        with pytest.raises(ModelLoadedError):
            _ = opened(**changed).responses
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
    before = opened().model
    edit(own_study.parent / "model" / file, **changes)
    assert opened().model == before
    with pytest.raises(ModelLoadedError):
        _ = opened().responses


def test_another_judge_asks_again(opened, monkeypatch):
    monkeypatch.setattr(RuleJudge, "identity", "rules, version 99")
    with pytest.raises(ModelLoadedError):
        _ = opened().responses


def test_another_bitsandbytes_touches_only_what_it_computes(opened, monkeypatch):
    newer(monkeypatch, "bitsandbytes")
    pipeline = opened()
    assert pipeline.comparison("fp16")
    with pytest.raises(ModelLoadedError):
        pipeline.traces("nf4")


def test_another_solver_fits_again_on_the_same_traces(opened, monkeypatch):
    before = opened()
    traced, found, neurons = (
        of("nf4") for of in (before.traces_folder, before.neurons_folder, before.neurons)
    )
    newer(monkeypatch, "skglm")
    pipeline = opened()
    assert pipeline.traces_folder("nf4") == traced
    assert pipeline.neurons_folder("nf4") != found
    assert pipeline.neurons("nf4") == neurons


def test_other_ids_are_other_samples(opened):
    """Equal labels and tokens under other ids: the neurons say which samples they are of."""
    pipeline = opened()
    before = pipeline.neurons("fp16").provenance["samples"]
    renamed = [s.model_copy(update={"id": f"x{s.id}"}) for s in pipeline.samples]
    pipeline.__dict__["samples"] = renamed
    assert pipeline.neurons("fp16").provenance["samples"] != before


def test_provenance_says_what_the_artefacts_were_built_by(opened, tmp_path):
    pipeline = opened()
    built = built_from(pipeline)
    responses = built["sample"]["responses"]
    assert responses["device"] == "cpu"
    assert responses["compute"] == "float32"
    assert responses["packages"]["torch"] == metadata.version("torch")
    assert "bitsandbytes" not in responses["packages"]
    assert responses["judge"] == RuleJudge.identity
    assert responses["stop_tokens"] == [0]
    assert set(responses["files"]) >= {"config.json", "tokenizer.json"}
    assert "bitsandbytes" in built["trace"]["nf4"]["packages"]
    assert built["identify"]["fp16"]["packages"]["skglm"] == metadata.version("skglm")
    # What is reported was written when the artefact was built, not when it is reported.
    inputs = pipeline.traces_folder("nf4") / "inputs.json"
    edit(inputs, machine="the one that traced")
    facts = write(tmp_path / "run", pipeline, pipeline.tables())
    assert facts["stages"]["trace"]["nf4"]["machine"] == "the one that traced"
    assert inputs_of(pipeline.responses) == facts["stages"]["sample"]
