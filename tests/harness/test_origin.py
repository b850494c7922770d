"""Experiment origin: on pairs with a planted mechanism, and on pairs that are rejected."""

import json
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from harness.cli import main
from harness.experiments.origin.report import PUBLISHED
from tests.harness import planted_pair, study
from tests.sharing import shared

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted pairs, and the tables of both in `stable-out` and `moved-out`; read only."""
    planted_pair.register()

    def run(folder: Path) -> None:
        planted_pair.write(folder)
        for name in ("stable", "moved"):
            arguments = [f"{folder / name}.toml", "--into", folder / f"{name}-out", "--quiet"]
            with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
                patch.chdir(folder)
                patch.setenv("HQ_CACHE", str(folder / "cache"))
                patch.setattr(sys, "argv", ["hq", "origin", *map(str, arguments)])
                main()
            assert not stop.value.code

    return shared(tmp_path_factory, "planted-pairs", run)


def table(runs: Path, pair: str, name: str, **where: str) -> dict:
    """Return the row of a table that has these values."""
    frame = pl.read_csv(runs / f"{pair}-out" / f"{name}.csv")
    return frame.row(
        by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True
    )


@pytest.mark.parametrize("precision", ["fp16", "nf4"])
def test_neurons_that_tuning_kept_detect_hallucination_of_the_base(runs, precision):
    where = {"precision": precision}
    h_neurons = table(runs, "stable", "transfer", scores="h-neurons", **where)
    matched = table(runs, "stable", "transfer", scores="matched", **where)
    assert h_neurons["auroc_low"] > 0.65
    assert matched["auroc"] < 0.6
    assert h_neurons["n"] == 2 * 200 - h_neurons["left_out"]


def test_neurons_that_tuning_moved_transfer_less(runs):
    where = {"scores": "h-neurons", "precision": "fp16"}
    stable, moved = (table(runs, pair, "transfer", **where) for pair in ("stable", "moved"))
    refit = table(runs, "moved", "transfer", scores="refit", precision="fp16")
    assert moved["auroc"] < stable["auroc"] - 0.1
    assert moved["auroc"] < refit["auroc"] - 0.1  # the base itself has its neurons


def test_ranks_say_which_pair_kept_its_neurons(runs):
    stable, moved = (table(runs, pair, "ranks", group="h-neurons") for pair in ("stable", "moved"))
    assert stable["rank"] > 0.8
    assert stable["p_stable"] < 0.001
    assert stable["p_stable_matched"] < 0.01
    assert stable["p_changed"] > 0.99
    assert moved["rank"] < 0.2
    assert moved["p_changed"] < 0.001
    assert moved["p_changed_matched"] < 0.01
    assert moved["rank_low"] >= 0
    assert stable["rank_high"] <= 1


def test_a_small_rank_is_a_large_change(runs):
    planted = {
        tuple(neuron) for neuron in json.loads((runs / "planted.json").read_text(encoding="utf-8"))
    }
    for pair, is_small in (("stable", False), ("moved", True)):
        neurons = pl.read_csv(runs / f"{pair}-out" / "neuron_ranks.csv").rows(named=True)
        found = [n for n in neurons if (n["layer"], n["index"]) in planted]
        assert len(found) >= 6
        assert all((n["rank"] < 0.1) == is_small and (n["z"] > 0) == is_small for n in found)


def test_quantization_moves_kept_neurons_more_and_moved_ones_less_than_tuning(runs):
    stable, moved = (table(runs, pair, "distances", change="nf4") for pair in ("stable", "moved"))
    assert stable["tuned_minus_high"] < 0
    assert stable["moved_more"] == stable["neurons"]
    assert moved["tuned_minus"] > 0
    assert moved["moved_more"] < moved["neurons"] / 3
    assert moved["distance"] == pytest.approx(stable["distance"], rel=0.3)
    tuned = table(runs, "stable", "distances", change="tuned")
    assert tuned["tuned_minus"] is None
    assert tuned["distance"] < stable["distance"] / 100


def test_the_base_is_recorded_and_its_nodes_are_told_apart(runs):
    provenance = json.loads((runs / "stable-out" / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["base"]["name"] == "base"
    assert provenance["base"]["fingerprint"] != provenance["fingerprint"]
    names = list(provenance["nodes"])
    assert {"sample fp16", "sample fp16 base", "changes tuned", "changes nf4 base"} <= set(names)
    assert "trace nf4" not in names  # the tuned model runs at FP16 only


def test_recorded_responses_of_the_tuned_model_give_the_same_tables(
    runs, hq, tmp_path, monkeypatch
):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("HQ_CACHE", str(runs / "cache"))
    file, study = tmp_path / "responses.jsonl.gz", runs / "stable.toml"
    exported = hq("responses", "export", study, "--into", file)
    assert exported.code == 0, exported.err
    done = hq("origin", study, "--responses", file, "--into", tmp_path / "out")
    assert done.code == 0, done.err
    for name in ("transfer", "ranks", "distances"):
        again, sampled = (
            folder / f"{name}.csv" for folder in (tmp_path / "out", runs / "stable-out")
        )
        assert again.read_bytes() == sampled.read_bytes()
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    assert {"recorded fp16 responses", "sample fp16 base"} <= set(provenance["nodes"])


def test_the_report_has_the_ranks_and_the_published_ones(runs, hq, tmp_path):
    page = tmp_path / "report.html"
    done = hq("report", runs / "stable-out", "--into", page)
    assert done.code == 0, done.err
    text = page.read_text(encoding="utf-8")
    assert "small rank = large change" in text
    assert all(mean in text for mean in PUBLISHED.values())


def test_the_page_of_docs_has_the_published_ranks():
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "origin.md").read_text(encoding="utf-8")
    assert all(f"| {model} | {mean} |" in page for model, mean in PUBLISHED.items())


@pytest.fixture
def pair(own_study: Path) -> tuple[Path, Path]:
    """A study of the tiny model, and a base that has other FFN weights of the same directions."""
    base = own_study.parent / "base"
    shutil.copytree(own_study.parent / "model", base)
    change(base, lambda name, w: w * 1.01 + 0.001 * (w > 0) if "mlp" in name else w)
    return own_study, base


def change(folder: Path, edit) -> None:
    """Replace each tensor of a checkpoint."""
    path = folder / WEIGHTS
    tensors = {name: edit(name, w).astype(w.dtype) for name, w in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def reset(base: Path, tuned: Path) -> None:
    shutil.copyfile(tuned / WEIGHTS, base / WEIGHTS)


def permuted(base: Path) -> None:
    def edit(name, w):
        if "layers.1.mlp" not in name:
            return w
        return w[:, ::-1].copy() if "down" in name else w[::-1].copy()

    change(base, edit)


def other_kind(base: Path) -> None:
    config = base / "config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(
        text.replace('"llama"', '"mistral"').replace("LlamaFor", "MistralFor"), encoding="utf-8"
    )


def other_sizes(base: Path) -> None:
    shutil.rmtree(base)
    config = study.hf.LlamaConfig(
        vocab_size=len(study.tokenizer()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=0,
    )
    study.hf.LlamaForCausalLM(config).half().save_pretrained(base)
    study.tokenizer().save_pretrained(base)


def other_words(base: Path) -> None:
    path = base / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["c"], vocabulary["d"] = vocabulary["d"], vocabulary["c"]
    path.write_text(json.dumps(content), encoding="utf-8")


PAIRS = {
    "another architecture": (other_kind, "architecture mistral", "llama"),
    "other sizes": (other_sizes, "3 layers of 96", "name a model and its own base"),
    "another vocabulary": (other_words, "different vocabularies: 2 tokens differ", "its own base"),
    "permuted neurons": (permuted, "not those of the base in layer 1", "have another index"),
    "no folder": (shutil.rmtree, "neither a local folder nor a hub id", "base"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_that_are_no_pair_are_rejected_before_anything_is_sampled(hq, pair, case, tmp_path):
    tiny, base = pair
    damage, *named = PAIRS[case]
    damage(base)
    failed = hq("origin", tiny, "--base", base, "--into", tmp_path / "out")
    assert failed.code == 2
    assert all(part in failed.err for part in named), failed.err
    assert "Traceback" not in failed.err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").rglob("responses.jsonl"))


def test_the_tuned_model_itself_is_no_base(hq, pair):
    tiny, base = pair
    reset(base, tiny.parent / "model")
    failed = hq("origin", tiny, "--base", base)
    assert failed.code == 2
    assert "have the same weights" in failed.err


def test_a_base_is_needed(hq, pair):
    failed = hq("origin", pair[0])
    assert failed.code == 2
    assert "give it as --base MODEL" in failed.err


def test_tuning_that_changed_no_ffn_is_rejected(hq, pair):
    tiny, base = pair
    reset(base, tiny.parent / "model")
    change(base, lambda name, w: w * 2 if "q_proj" in name else w)
    failed = hq("origin", tiny, "--base", base)
    assert failed.code == 2
    assert "no neuron changed more than another" in failed.err
