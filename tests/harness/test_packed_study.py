"""A study whose cells are packed checkpoints: made elsewhere, moved, or another model's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

from hq.neurons.neuron_set import NeuronSet
from tests.block_float_files import KINDS, edit_config, save
from tests.harness import study
from tests.harness.test_bad_input import is_one_sentence
from tests.packed_files import PACKINGS, save_packed

ORDER = torch.randperm(128, generator=torch.Generator().manual_seed(0))


def given(tiny_study: Path, into: Path, precision: str, checkpoint: Path) -> Path:
    """The tiny study, with a checkpoint for a precision."""
    into.mkdir(exist_ok=True)
    text = (
        tiny_study.read_text(encoding="utf-8")
        + f"\n[checkpoints]\n{precision} = {json.dumps(str(checkpoint))}\n"
    )
    (into / "study.toml").write_text(text, encoding="utf-8")
    return into / "study.toml"


def permuted(name: str, weight: torch.Tensor) -> torch.Tensor:
    if "gate_proj" in name or "up_proj" in name:
        return weight[ORDER]
    return weight[:, ORDER] if "down_proj" in name else weight


def cut(place: tuple[int, int]) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Prunes a neuron, then puts all in another order."""
    layer, index = place

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.clone()
        if f"layers.{layer}.mlp.down_proj" in name:
            weight[:, index] = 0
        elif f"layers.{layer}.mlp" in name:
            weight[index] = 0
        return permuted(name, weight)

    return change


def rotated(name: str, weight: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(128, 128, generator=generator))[0]
    return (weight.float() @ turn).half() if "1.mlp.down_proj" in name else weight


def run(hq, tiny_study, tmp_path, precision, change=None):
    packed = save_packed(
        tiny_study.parent / "model", tmp_path / "packed", PACKINGS[precision], change
    )
    config = given(tiny_study, tmp_path / "given", precision, packed)
    return hq("study", "run", config, "--precisions", f"fp16,{precision}", "--quiet")


def table(name: str, precision: str) -> dict[str, object]:
    rows = pl.read_csv(f"runs/tiny/{name}.csv").filter(pl.col("precision") == precision)
    return rows.to_dicts()[0]


@pytest.mark.parametrize(
    ("precision", "storage"),
    [
        ("gptq-8", "gptq 8 bit g64 sym"),
        ("awq-4", "awq 4 bit g64 asym"),
        ("compressed-8", "compressed-tensors 8 bit g64 sym"),
    ],
)
def test_an_existing_checkpoint_is_a_cell_like_any_other(
    precision, storage, hq, tiny_study, tmp_path
):
    outcome = run(hq, tiny_study, tmp_path, precision)
    assert outcome.code == 0, outcome
    assert table("model", precision)["storage"] == storage
    mapped = table("mapping", precision)
    assert mapped["layers"] == "3 identical"
    assert mapped["probe_found"] == mapped["probe"] == table("detection", "fp16")["neurons"]
    assert 0 < mapped["error"] <= mapped["error_worst"] < (0.2 if precision == "awq-4" else 0.01)
    assert table("mapping", "fp16")["error"] == 0
    layers = pl.read_csv("runs/tiny/layers.csv")
    assert layers.group_by("precision").len()["len"].to_list() == [3, 3]


def test_provenance_names_the_checkpoint_by_what_is_in_it(hq, tiny_study, tmp_path):
    assert run(hq, tiny_study, tmp_path, "gptq-8").code == 0
    text = Path("runs/tiny/provenance.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    facts = json.loads(text)
    assert facts["definition"]["checkpoints"] == {"gptq-8": "given"}
    traced = facts["nodes"]["trace gptq-8"]["parameters"]["given"]
    config = tmp_path / "packed" / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    again = hq(
        *("study", "run", tmp_path / "given" / "study.toml"),
        *("--precisions", "fp16,gptq-8", "--json"),
    )
    assert again.code == 0
    nodes = json.loads(again.out)["provenance"]["nodes"]
    assert nodes["trace gptq-8"]["parameters"]["given"] != traced


def test_neurons_are_read_where_they_went(hq, tiny_study, tmp_path):
    """In another order of neurons all figures stay what they were."""
    outcome = run(hq, tiny_study, tmp_path, "gptq-8", permuted)
    assert outcome.code == 0, outcome
    assert table("mapping", "gptq-8")["layers"] == "3 permuted"
    fidelity = pl.read_csv("runs/tiny/fidelity.csv").filter(
        (pl.col("precision") == "gptq-8") & (pl.col("group") == "probe")
    )
    assert fidelity["correlation"][0] > 0.99
    assert abs(float(table("detection", "gptq-8")["auroc_change"])) < 0.02


def test_a_pruned_neuron_of_the_probe_ends_the_study(hq, finished, tiny_study, tmp_path):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    (neuron, *_) = NeuronSet.load(finished / "runs" / "tiny" / "neurons.json").neurons
    place = neuron.layer, neuron.index
    outcome = run(hq, tiny_study, tmp_path, "gptq-8", cut(place))
    is_one_sentence(outcome, f"neurons are not found, {place} first")
    assert not Path("runs").exists()


def test_mixed_neurons_end_the_study(hq, tiny_study, tmp_path):
    outcome = run(hq, tiny_study, tmp_path, "gptq-8", rotated)
    is_one_sentence(outcome, "layers 1 (W_down mixes neurons)")
    assert not Path("runs").exists()
    assert not list(Path("cache/store").glob("responses-*"))  # said before anything is sampled


def test_another_model_ends_the_study(hq, tiny_study, tmp_path):
    other = study.checkpoint(tmp_path / "other", seed=5)
    packed = save_packed(other, tmp_path / "packed", PACKINGS["gptq-4"])
    config = given(tiny_study, tmp_path / "given", "gptq-4", packed)
    outcome = hq("study", "run", config, "--precisions", "fp16,gptq-4", "--quiet")
    is_one_sentence(outcome, "are not those of the source in 3 layers")
    assert not list(Path("cache/store").glob("responses-*"))  # said before anything is sampled


def test_what_is_wrong_with_a_checkpoint_is_said(hq, tiny_study, tmp_path):
    for precision, path, words in (
        ("gptq-4", tmp_path / "nowhere", "neither a local folder nor a hub id"),
        ("gptq-8", tiny_study.parent / "model", "does not say that it is quantized"),
        ("nf4", tiny_study.parent / "model", "nf4 is not read from a checkpoint"),
        ("gptq-4-native", tiny_study.parent / "model", "native is not read from a checkpoint"),
        ("fp8", tmp_path / "nowhere", "neither a local folder nor a hub id"),
        ("compressed-4", tmp_path / "nowhere", "neither a local folder nor a hub id"),
    ):
        config = given(tiny_study, tmp_path / "given", precision, path)
        outcome = hq("study", "run", config, "--precisions", f"fp16,{precision}", "--quiet")
        is_one_sentence(outcome, words)


def test_fp8_is_made_while_loading(hq, tiny_study):
    outcome = hq("study", "run", tiny_study, "--precisions", "fp16,fp8", "--json")
    assert outcome.code == 0, outcome
    nodes = json.loads(outcome.out)["provenance"]["nodes"]
    assert nodes["trace fp8"]["parameters"]["scales"] == "row"
    row = table("model", "fp8")
    assert row["storage"] == "float8_e4m3fn, a scale per row, dequantized to float32"
    # 32 bits per row of 64 inputs, and of 128 in W_down, which has 2/9 of the weights.
    assert row["bits_per_weight"] == pytest.approx(8 + 7 / 9 * 32 / 64 + 2 / 9 * 32 / 128, abs=1e-4)
    assert table("mapping", "fp8")["layers"] == "3 identical"


def test_an_fp8_checkpoint_is_a_cell_like_any_other(hq, tiny_study, tmp_path):
    stored = tmp_path / "stored"
    save(tiny_study.parent / "model", stored, KINDS["fine-grained"])
    config = given(tiny_study, tmp_path / "given", "fp8", stored)
    outcome = hq("study", "run", config, "--precisions", "fp16,fp8", "--quiet")
    assert outcome.code == 0, outcome
    assert table("model", "fp8")["storage"] == (
        "float8_e4m3fn, blocks of 32×32, dequantized to float32, activations not quantized"
    )
    assert table("mapping", "fp8")["layers"] == "3 identical"
    edit_config(stored, lambda c: c.update(quantization_config=KINDS["mxfp4"].config))
    outcome = hq("study", "run", config, "--precisions", "fp16,fp8", "--quiet")
    is_one_sentence(outcome, "name its own precision (mxfp4)")


def test_what_is_only_read_has_to_be_named(hq, tiny_study):
    outcome = hq("study", "run", tiny_study, "--precisions", "fp16,compressed-4", "--quiet")
    is_one_sentence(outcome, "hq reads compressed-4 but cannot make it: give such a checkpoint")
    assert not Path("runs").exists()


def test_a_group_size_is_part_of_what_a_run_depends_on(hq, tiny_study):
    pytest.importorskip("torchao")
    outcome = hq("study", "run", tiny_study, "--precisions", "fp16,torchao-int4", "--json")
    assert outcome.code == 0, outcome
    nodes = json.loads(outcome.out)["provenance"]["nodes"]
    assert nodes["trace torchao-int4"]["parameters"]["group_size"] == 64
    assert "torchao" in nodes["trace torchao-int4"]["parameters"]["packages"]
    assert "group_size" not in nodes["trace fp16"]["parameters"]
    assert table("mapping", "torchao-int4")["layers"] == "3 identical"


def test_without_the_library_no_checkpoint_is_made(hq, tiny_study, monkeypatch):
    monkeypatch.setattr("hq.precisions.packed_checkpoints.quantize.find_spec", lambda _: None)
    outcome = hq("study", "run", tiny_study, "--precisions", "fp16,gptq-4", "--quiet")
    is_one_sentence(outcome, "pip install 'hq[gptq]'")
