"""A whole study of a mixture of experts: its tables name the expert of each neuron."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from harness.tables.files import neuron_names
from tests.harness import study
from tests.sharing import shared

pytest.importorskip("llama_cpp")

OPTIONS = ("--precisions", "fp16,gguf-q8_0", "--quiet")
POSITION = ["layer", "expert", "index"]


@pytest.fixture(scope="session")
def mixture_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study with a Mixtral; read only."""
    made = shared(tmp_path_factory, "mixture", lambda folder: study.write(folder, experts=True))
    return made / "study.toml"


@pytest.fixture(scope="session")
def mixture_cache(tmp_path_factory, mixture_study):
    """The cache of a finished run of it, with the run; read only."""
    import sys

    from harness.cli import main

    def run(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.chdir(folder)
            patch.setenv("HQ_CACHE", str(folder / "cache"))
            patch.setattr(sys, "argv", ["hq", "study", "run", str(mixture_study), *OPTIONS])
            main()
        assert not stop.value.code

    return shared(tmp_path_factory, "mixture-finished", run)


@pytest.fixture
def done(mixture_cache, tmp_path, hq):
    """The folder of a finished run, with the cache in place."""
    shutil.copytree(mixture_cache, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "tiny"


def positions(frame):
    """The neurons of a table."""
    assert frame.columns.index("expert") == frame.columns.index("layer") + 1
    return frame.select(POSITION)


def test_the_main_tables_name_experts(done):
    neurons = json.loads((done / "neurons.json").read_text(encoding="utf-8"))["neurons"]
    listed = [tuple(neuron[name] for name in POSITION) for neuron in neurons]
    assert len(set(listed)) == len(listed) > 0
    errors = pl.read_csv(done / "neuron_errors.csv")
    for precision in ("fp16", "gguf-q8_0"):
        assert positions(errors.filter(precision=precision)).rows() == listed
    assert errors.filter(precision="gguf-q8_0")["relative_error"].max() < 0.5
    layers = pl.read_csv(done / "layers.csv").filter(precision="gguf-q8_0")
    assert layers.select("layer", "expert").rows() == [(la, e) for la in range(3) for e in range(4)]
    assert set(layers["relation"]) == {"identical"}
    selected = positions(pl.read_csv(done / "stability.csv")).rows()
    assert set(listed) <= set(selected)
    assert pl.read_csv(done / "mapping.csv")["probe_found"].to_list()[-1] == len(listed)


@pytest.mark.parametrize(
    ("kind", "table"), [("information", "neurons"), ("distributions", "effects")]
)
def test_tables_of_single_neurons_name_experts(done, hq, mixture_study, kind, table):
    ran = hq("run", "-e", kind, mixture_study, *OPTIONS)
    assert ran.code == 0, ran.err
    run = done.with_name(f"tiny-{kind}")
    frame = pl.read_csv(run / f"{table}.csv")
    found = positions(frame)
    assert found["expert"].null_count() == 0
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))["tables"][table]
    assert results["keys"] == ["precision", *POSITION]
    assert "expert" in results["columns"]
    name = frame.select(neuron_names(frame)).to_series()[0]
    assert name == ":".join(map(str, found.row(0)))
    accepted = hq("check", run, "--against", "results", "--accept")
    assert accepted.code == 0, accepted.err
    assert hq("check", run, "--against", "results").code == 0
    assert hq("report", run).code == 0


def test_a_dense_study_has_no_such_column(finished):
    run = finished / "runs" / "tiny"
    for name in ("neuron_errors", "stability", "layers"):
        assert "expert" not in pl.read_csv(run / f"{name}.csv").columns


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("origin", "ranks of changes by tuning are those of neurons of dense layers"),
        ("finetune", "a LoRA changes linear layers, which its experts are not"),
    ],
)
def test_what_is_defined_for_dense_layers_is_refused_before_anything_runs(
    hq, mixture_study, tmp_path, kind, words
):
    extra = ("--base", mixture_study.parent / "model") if kind == "origin" else ()
    ran = hq(kind, mixture_study, *extra, "--precisions", "fp16", "--quiet")
    assert ran.code == 2
    assert f"is a mixture of experts, and {words}: use a dense model." in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
