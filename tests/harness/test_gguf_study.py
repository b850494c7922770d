"""A study whose cells, source or sampler run in llama.cpp."""

import json
from pathlib import Path

import polars as pl
import pytest

pytest.importorskip("llama_cpp")

from hq.gguf.write import write_gguf
from hq.models.checkpoint import checkpoint_identity


def detection(run: str = "runs/tiny") -> pl.DataFrame:
    """The table of a run."""
    return pl.read_csv(Path(run) / "detection.csv")


def test_gguf_precisions_are_cells_like_any_other(hq, tiny_study):
    precisions = ["fp16", "gguf-f16", "gguf-q8_0", "gguf-q8_0+fa"]
    options = ("--precisions", ",".join(precisions))
    outcome = hq("study", "run", tiny_study, *options, "--quiet")
    assert outcome.code == 0, outcome
    table = detection()
    assert table["precision"].to_list() == precisions
    flash = "int8, flash attention, K f16, V f16"
    assert table["compute"].to_list() == ["float32", "float16", "int8", flash]
    assert table["auroc_change"].abs().max() < 0.05
    model = pl.read_csv("runs/tiny/model.csv")
    assert model["storage"].to_list() == ["float32", "f16", "q8_0", "q8_0"]
    assert model["bits_per_weight"].to_list() == [32, 16, 8.5, 8.5]
    assert len(set(model["kl"])) == len(precisions)  # each cell was run
    nodes = json.loads(Path("runs/tiny/provenance.json").read_text(encoding="utf-8"))["nodes"]
    assert "llama-cpp-python" in nodes["trace gguf-q8_0"]["parameters"]["packages"]
    assert nodes["gguf gguf-q8_0"]["inputs"].keys() == {"dense"}
    # A suffix shares the file and its map, and nothing that runs the model.
    assert {f"{stage} gguf-q8_0+fa" for stage in ("trace", "identify", "uncertainty")} <= set(nodes)
    assert nodes.keys().isdisjoint({"gguf gguf-q8_0+fa", "map gguf-q8_0+fa"})
    assert nodes["trace gguf-q8_0+fa"]["inputs"] == nodes["trace gguf-q8_0"]["inputs"]
    # A second run finds everything.
    again = hq("study", "run", tiny_study, *options, "--json")
    assert again.code == 0
    assert detection().equals(table)


def test_a_study_begins_from_a_gguf_file(hq, tiny_study):
    model = tiny_study.parent / "model"
    write_gguf(model, Path("tiny.gguf").absolute(), "f32", checkpoint_identity(model))
    options = ("--model", "tiny.gguf", "--precisions", "fp16,gguf-source", "--quiet")
    outcome = hq("study", "run", tiny_study, *options)
    assert outcome.code == 0, outcome
    assert detection()["auroc_change"].abs().max() < 0.02


def test_the_list_explains_suffixes(hq):
    listed = {
        row["name"]: row["about"] for row in json.loads(hq("list", "precisions", "--json").out)
    }
    assert listed["gguf-q8_0"] == "run by llamacpp"
    about = "any GGUF precision, run with flash attention, K q4_0, V q4_0"
    assert listed["gguf-*+kv-q4_0"] == about


def test_sampling_in_llamacpp(hq, tiny_study):
    outcome = hq(
        *("study", "run", tiny_study, "--sampler", "llamacpp", "--precisions", "fp16", "--quiet")
    )
    assert outcome.code == 0, outcome
    nodes = json.loads(Path("runs/tiny/provenance.json").read_text(encoding="utf-8"))["nodes"]
    responses = nodes["sample gguf-q8_0"]["parameters"]["responses"]
    assert responses["precision"] == "gguf-q8_0"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precisions", "fp16,gguf-source"), "is not a GGUF file"),
        (("--precisions", "fp16,gguf-q9"), "no precision 'gguf-q9'"),
        (("--precisions", "fp16,gguf-q8_0+kv"), "no suffix of a GGUF precision 'kv'"),
        (("--precisions", "nf4+fa"), "which only GGUF precisions have"),
        (("--precisions", "gguf-q8_0+kv-q8_0"), "blocks of 32 numbers"),  # heads of 16
        (("--precisions", "fp16,gguf-source+fa"), "is not a GGUF file"),
        (("--sampler", "llama"), "sampler"),
        (("--model", "nowhere.gguf"), "nowhere.gguf"),
    ],
)
def test_bad_input_is_one_sentence(options, words, hq, tiny_study):
    outcome = hq("study", "run", tiny_study, *options, "--quiet")
    assert outcome.code == 2, outcome
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
