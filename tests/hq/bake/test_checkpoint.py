"""Baking into checkpoint folders, compared with the libraries that wrote them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.precisions import PRECISIONS
from hq.precisions.base import from_pretrained
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint
from hq.suppress.bake import bake, nearest_factors, read_record, undo, verify_baked
from hq.suppress.bake.checkpoint import RECORD_FILE, CheckpointModel
from tests import packed_files, tiny
from tests.packed_files import ASYMMETRIC, PACKINGS

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
NEURONS = [(0, 0), (0, 127), (1, 7), (2, 64)]
UPS = {"gpt2": "mlp.c_fc", "opt": "fc1", "phi3": "mlp.gate_up_proj"}


def same_files(one: Path, other: Path) -> None:
    """The same names, and the same bytes."""
    names = [
        sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
        for root in (one, other)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def changed_tensors(one: Path, other: Path) -> list[str]:
    old, new = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert list(old) == list(new)
    return [name for name in old if not torch.equal(old[name], new[name])]


# Dense


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_only_the_neuron_changes_in_every_family(family, alpha, checkpoint, tmp_path):
    source, baked = checkpoint(family), tmp_path / "baked"
    factors = dict.fromkeys(NEURONS, alpha)
    record = bake(source, baked, factors)
    assert record.exact == (alpha == 2)  # half of a number below 2^-14 may be none of FP16
    for name in changed_tensors(source, baked):
        assert re.search(r"(up_proj|gate_up_proj|fc1|mlp\.c_proj)\.(weight|bias)$", name), name
    verification = verify_baked(baked, source, factors)
    assert verification.is_verified, verification.problems
    if verification.exact:
        assert verification.logits == 0
    assert verification.effect > 1e-3
    assert verification.logits < 1e-2 * verification.effect
    with TorchBackend(source) as original, TorchBackend(baked) as edited:
        with original.scale(factors):
            expected = dict(original.logits(tiny.exchanges()))
        for row, logits in edited.logits(tiny.exchanges()):
            error = np.abs(logits - expected[row]).max()
            assert error == 0 if verification.exact else error < 2e-3
    undo(baked, tmp_path / "again")
    same_files(tmp_path / "again", source)


def test_only_the_up_half_of_a_fused_projection_changes(checkpoint, tmp_path):
    bake(checkpoint("phi3"), tmp_path / "baked", {(1, 5): 0.0})
    name = "model.layers.1.mlp.gate_up_proj.weight"
    assert changed_tensors(checkpoint("phi3"), tmp_path / "baked") == [name]
    old, new = (
        load_file(folder / "model.safetensors")[name]
        for folder in (checkpoint("phi3"), tmp_path / "baked")
    )
    assert (old != new).any(1).nonzero().ravel().tolist() == [tiny.D_FF + 5]


@pytest.mark.parametrize(("family", "weight"), [("opt", "fc2"), ("gpt2", "mlp.c_proj")])
def test_with_gelu_and_no_gate_the_column_of_down_is_scaled(family, weight, checkpoint, tmp_path):
    source = Path(shutil.copytree(checkpoint(family), tmp_path / "source"))
    if family == "opt":
        config = source / "config.json"
        config.write_text(
            config.read_text(encoding="utf-8").replace('"relu"', '"gelu"'), encoding="utf-8"
        )
    bake(source, tmp_path / "baked", {(1, 5): 2.0})
    (name,) = changed_tensors(source, tmp_path / "baked")
    assert name.endswith(f".1.{weight}.weight")
    assert verify_baked(tmp_path / "baked", source, {(1, 5): 2.0}).logits == 0


def test_with_relu_and_no_gate_the_row_of_up_is_scaled(checkpoint, tmp_path):
    source = Path(shutil.copytree(checkpoint("gpt2"), tmp_path / "source"))
    config = source / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"gelu_new"', '"relu"'), encoding="utf-8"
    )
    bake(source, tmp_path / "baked", {(1, 5): 0.25})
    names = changed_tensors(source, tmp_path / "baked")
    assert names == [f"transformer.h.1.mlp.c_fc.{part}" for part in ("bias", "weight")]
    assert verify_baked(tmp_path / "baked", source, {(1, 5): 0.25}).is_verified


def test_an_alpha_that_is_exact_and_no_power_of_two_is_verified(checkpoint, tmp_path):
    source = Path(shutil.copytree(checkpoint("llama"), tmp_path / "source"))
    weights = load_file(source / "model.safetensors")
    file = source / "model.safetensors"
    save_file({n: w.float() for n, w in weights.items()}, file, metadata={"format": "pt"})
    (alpha,) = nearest_factors(source, dict.fromkeys(NEURONS, 0.3)).values()
    assert alpha not in (0, 0.25, 0.5)
    factors = dict.fromkeys(NEURONS, alpha)
    assert bake(source, tmp_path / "baked", factors).exact
    verification = verify_baked(tmp_path / "baked", source, factors)
    assert verification.is_verified, verification.problems
    assert verification.exact
    assert 0 < verification.logits < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_floats(dtype, checkpoint, tmp_path):
    source = Path(shutil.copytree(checkpoint("llama"), tmp_path / "source"))
    weights = load_file(source / "model.safetensors")
    file = source / "model.safetensors"
    save_file({n: w.to(dtype) for n, w in weights.items()}, file, metadata={"format": "pt"})
    for alpha in (0.5, 0.3):
        factors, baked = dict.fromkeys(NEURONS, alpha), tmp_path / f"{alpha}"
        bake(source, baked, factors)
        verification = verify_baked(baked, source, factors)
        assert verification.is_verified, verification.problems
        assert verification.exact == (alpha == 0.5)


def test_only_changed_shards_have_a_digest(tmp_path):
    source = tmp_path / "source"
    tiny.model("llama").half().save_pretrained(source, max_shard_size="60KB")
    shards = sorted(file.name for file in source.glob("*.safetensors"))
    assert len(shards) > 3
    (source / "sub").mkdir()
    (source / "sub" / "empty.txt").touch()
    record = bake(source, tmp_path / "baked", {(0, 3): 0.5, (2, 5): 0.5})
    assert 1 <= len(record.sha256) < len(shards)
    assert verify_baked(tmp_path / "baked", source, record.factors).is_verified
    undo(tmp_path / "baked", tmp_path / "again")
    same_files(tmp_path / "again", source)


@given(
    alphas=st.dictionaries(
        st.tuples(st.integers(0, 2), st.integers(0, 127)), st.floats(0, 16), min_size=1, max_size=4
    ),
    precision=st.sampled_from(["gptq-4", "gptq-3", "awq-4"]),
)
@settings(max_examples=15)
def test_any_alphas_of_any_neurons_are_baked_and_undone(
    alphas, precision, packed, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("any")
    source = packed(precision)
    record = bake(source, folder / "baked", alphas)
    assert read_record(folder / "baked") == record
    for (layer, index), alpha in alphas.items():
        name = f"model.layers.{layer}.mlp.up_proj"
        old, new = (PackedCheckpoint(f).layer(name).dense() for f in (source, folder / "baked"))
        torch.testing.assert_close(new[index], alpha * old[index], rtol=2e-3, atol=1e-5)
    undo(folder / "baked", folder / "again")
    same_files(folder / "again", source)


# GPTQ, AWQ and compressed-tensors


@pytest.mark.parametrize("packing", [*PACKINGS.values(), *ASYMMETRIC], ids=str)
def test_packed_rows_are_scaled_and_all_others_stay(packing, tmp_path):
    source, baked = tmp_path / "source", tmp_path / "baked"
    packed_files.save("llama", source, packing)
    factors = dict.fromkeys(NEURONS, 0.5)
    assert bake(source, baked, factors).exact
    assert all(
        n.endswith(("up_proj.scales", "up_proj.weight_scale"))
        for n in changed_tensors(source, baked)
    )
    for layer in range(tiny.LAYERS):
        name = f"model.layers.{layer}.mlp.up_proj"
        old, new = (PackedCheckpoint(folder).layer(name).dense() for folder in (source, baked))
        rows = [i for place, i in NEURONS if place == layer]
        old[rows] *= 0.5
        assert torch.equal(old, new)
        for row in rows:
            found = CheckpointModel(baked).neuron_weights(layer, row)
            np.testing.assert_allclose(found.values, new[row].numpy(), rtol=1e-6)


@pytest.mark.parametrize("precision", PACKINGS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.3])
def test_packed_checkpoints_compute_what_hooks_do(precision, alpha, packed, tmp_path):
    source, baked, factors = packed(precision), tmp_path / "baked", dict.fromkeys(NEURONS, alpha)
    bake(source, baked, factors)
    verification = verify_baked(baked, source, factors)
    assert verification.is_verified, verification.problems
    assert verification.exact == (alpha != 0.3)
    assert verification.effect > 0.1
    assert verification.logits == 0 if verification.exact else 0 < verification.logits < 1e-3


def test_formats_with_permuted_scales_are_rejected(packed, tmp_path):
    source = Path(shutil.copytree(packed("gptq-4"), tmp_path / "source"))
    config = source / "config.json"
    stated = json.loads(config.read_text(encoding="utf-8"))
    stated["quantization_config"]["checkpoint_format"] = "marlin"
    config.write_text(json.dumps(stated), encoding="utf-8")
    with pytest.raises(HQError, match="format 'marlin', which hq does not read"):
        bake(source, tmp_path / "baked", {(0, 0): 0.5})


# bitsandbytes


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_bitsandbytes_reads_scaled_rows_and_all_others_as_they_were(family, kind, saved, tmp_path):
    pytest.importorskip("bitsandbytes")
    source, baked = saved(family, kind), tmp_path / "baked"
    factors = dict.fromkeys(NEURONS, 0.5)
    assert bake(source, baked, factors).exact
    models = [from_pretrained(path, CPU, dtype=torch.float32) for path in (source, baked)]
    offset = tiny.D_FF if family == "phi3" else 0
    for (name, old), (_, new) in zip(*(m.named_modules() for m in models), strict=True):
        if not (hasattr(old, "weight") and PRECISIONS[kind].is_precision_of(old)):
            continue
        dense = PRECISIONS[kind].dense(old).clone()
        if name.endswith(UPS.get(family, "mlp.up_proj")):
            layer = int(name.split(".layers.")[1].split(".")[0])
            dense[[offset + i for place, i in NEURONS if place == layer]] *= 0.5
        assert torch.equal(PRECISIONS[kind].dense(new), dense), name
    undo(baked, tmp_path / "again")
    same_files(tmp_path / "again", source)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.3])
def test_bitsandbytes_computes_what_hooks_do(kind, alpha, saved, tmp_path):
    pytest.importorskip("bitsandbytes")
    source, factors = saved("llama", kind), dict.fromkeys(NEURONS, alpha)
    bake(source, tmp_path / "baked", factors)
    verification = verify_baked(tmp_path / "baked", source, factors)
    assert verification.is_verified, verification.problems
    assert verification.effect > 0.1
    assert verification.logits == 0 if verification.exact else verification.logits < 1e-4


def test_the_vectors_that_are_verified_are_those_of_bitsandbytes(saved):
    pytest.importorskip("bitsandbytes")
    for kind in ("int8", "nf4", "fp4"):
        model = from_pretrained(saved("llama", kind), CPU, dtype=torch.float32)
        dense = PRECISIONS[kind].dense(model.get_submodule("model.layers.1.mlp.up_proj"))
        values = CheckpointModel(saved("llama", kind)).neuron_weights(1, 9).values
        np.testing.assert_allclose(values, dense[9].numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "kind", "words"),
    [
        ("llama", "nested", "is double-quantized: .* without bnb_4bit_use_double_quant"),
        ("gpt2", "int8", "not known to be linear in its row of W_up.*into the dense checkpoint"),
    ],
)
def test_formats_without_a_scale_for_one_neuron_are_rejected_with_the_reason(
    family, kind, words, saved, tmp_path
):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(HQError, match=words):
        bake(saved(family, kind), tmp_path / "baked", {(0, 0): 0.5})
    assert not list(tmp_path.iterdir())


def edit_state(source: Path, into: Path, **changes: object) -> Path:
    """A saved nf4 checkpoint with another quantization state of its first up projection."""
    shutil.copytree(source, into)
    tensors = load_file(into / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(tensors[name].numpy())) | changes
    text = json.dumps({key: value for key, value in state.items() if value is not None})
    tensors[name] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


def test_blocks_that_extend_into_another_row_are_rejected(saved, tmp_path):
    pytest.importorskip("bitsandbytes")
    source = edit_state(saved("llama", "nf4"), tmp_path / "a", blocksize=128)
    with pytest.raises(HQError, match="blocks of 128 weights and rows of 64"):
        bake(source, tmp_path / "b", {(0, 0): 0.5})
    source = edit_state(saved("llama", "nf4"), tmp_path / "c", shape=None)
    with pytest.raises(HQError, match=r"has a damaged .*bitsandbytes__nf4: save it again"):
        bake(source, tmp_path / "b", {(0, 0): 0.5})
    source = without(saved("llama", "nf4"), tmp_path / "d", "quant_state")
    with pytest.raises(HQError, match=r"lacks the quantization state of .*up_proj: save"):
        bake(source, tmp_path / "b", {(0, 0): 0.5})


# Bad input


def without(source: Path, into: Path, part: str) -> Path:
    """A checkpoint that lacks the tensors with this in their name."""
    shutil.copytree(source, into)
    tensors = load_file(into / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    save_file(kept, into / "model.safetensors", metadata={"format": "pt"})
    return into


def test_incomplete_and_unknown_checkpoints_are_refused(checkpoint, saved, tmp_path):
    target = tmp_path / "baked"
    with pytest.raises(HQError, match=r"it has no config\.json"):
        bake(tmp_path, target, {(0, 0): 0.5})
    source = without(checkpoint("llama"), tmp_path / "a", "layers.1.mlp.up_proj")
    with pytest.raises(HQError, match=r"lacks layers\.1\.mlp\.up_proj\.weight"):
        bake(source, target, {(1, 0): 0.5})
    shutil.copytree(checkpoint("llama"), tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HQError, match=r"up_proj\.weight in F8_E4M3, into which"):
        bake(tmp_path / "b", target, {(1, 0): 0.5})
    tensors["model.layers.1.mlp.up_proj.weight_packed"] = tensors.pop(name)
    save_file(tensors, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HQError, match="b does not say that it is quantized"):
        bake(tmp_path / "b", target, {(1, 0): 0.5})
    assert not target.exists()


def test_overflow_is_refused_with_the_largest_alpha(checkpoint, tmp_path):
    with pytest.raises(HQError, match="overflow F16: use at most") as refused:
        bake(checkpoint("llama"), tmp_path / "baked", {(0, 0): 1e9})
    most = float(str(refused.value).split("use at most ")[1].rstrip("."))
    bake(checkpoint("llama"), tmp_path / "baked", {(0, 0): most})


def test_a_baked_model_is_not_baked_again_and_others_are_not_undone(checkpoint, tmp_path):
    bake(checkpoint("llama"), tmp_path / "baked", {(0, 0): 0.5})
    with pytest.raises(HQError, match="baked already"):
        bake(tmp_path / "baked", tmp_path / "more", {(0, 1): 0.5})
    with pytest.raises(HQError, match="exists already"):
        bake(checkpoint("llama"), tmp_path / "baked", {(0, 1): 0.5})
    with pytest.raises(HQError, match="is inside"):
        undo(tmp_path / "baked", tmp_path / "baked" / "sub" / "again")
    with pytest.raises(HQError, match="has no baking record"):
        undo(checkpoint("llama"), tmp_path / "more")


def test_a_changed_folder_is_neither_undone_nor_verified(checkpoint, tmp_path):
    baked, factors = tmp_path / "baked", {(0, 3): 0.5}
    bake(checkpoint("llama"), baked, factors)
    file = baked / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(HQError, match="was changed after it was baked"):
        undo(baked, tmp_path / "again")
    (problem,) = verify_baked(baked, checkpoint("llama"), factors).problems
    assert "1 bytes of its model.safetensors differ" in problem
    (baked / RECORD_FILE).write_text("[", encoding="utf-8")
    with pytest.raises(HQError, match=r"hq-bake\.json has a baking record .* cannot read: .*JSON"):
        read_record(baked)
    assert [path.name for path in tmp_path.iterdir()] == ["baked"]


def test_a_record_that_names_files_outside_is_rejected(checkpoint, tmp_path):
    bake(checkpoint("llama"), tmp_path / "baked", {(0, 3): 0.5})
    record = tmp_path / "baked" / RECORD_FILE
    record.write_text(
        record.read_text(encoding="utf-8").replace('"model.safetensors"', '"../../passwords"'),
        encoding="utf-8",
    )
    with pytest.raises(HQError, match="was changed after it was baked"):
        undo(tmp_path / "baked", tmp_path / "again")


@pytest.mark.parametrize(
    ("pattern", "new", "words"),
    [
        (r'"start": \d+', '"start": 99999999', "does not fit its tensor"),
        (r'"tensor": "[^"]+"', '"tensor": "x"', "has no tensor 'x'"),
        (r'"sha256": \{[^}]*\}', '"sha256": {}', "was changed after it was baked"),
    ],
)
def test_a_record_of_another_model_is_refused(pattern, new, words, checkpoint, tmp_path):
    bake(checkpoint("llama"), tmp_path / "baked", {(0, 3): 0.5})
    record = tmp_path / "baked" / RECORD_FILE
    record.write_text(re.sub(pattern, new, record.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(HQError, match=words):
        undo(tmp_path / "baked", tmp_path / "again")


# A killed process, and a full disk

KILLED = """
import os, signal, sys
from pathlib import Path
import hq.suppress.bake.checkpoint as module
from hq.suppress.bake import bake

def half(path, patches):
    os.kill(os.getpid(), signal.SIGKILL)

module.apply_patches = half
bake(Path(sys.argv[1]), Path(sys.argv[2]), {(0, 0): 0.5})
"""


def test_killed_in_the_middle_it_leaves_no_target(checkpoint, tmp_path):
    target = tmp_path / "baked"
    command = (sys.executable, "-c", KILLED, str(checkpoint("llama")), str(target))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    bake(checkpoint("llama"), target, {(0, 0): 0.5})


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hq.suppress.bake.checkpoint.apply_patches", full)
    with pytest.raises(OSError, match="No space"):
        bake(checkpoint("llama"), tmp_path / "baked", {(0, 0): 0.5})
    assert not list(tmp_path.iterdir())
