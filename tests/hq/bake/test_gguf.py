"""Baking into GGUF files of every type, compared with another reader and llama.cpp's callback."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.suppress.bake import bake, nearest_factors, read_record, undo, verify_baked
from hq.suppress.bake.gguf import KEY, GGUFModel
from tests.hq import gguf_files as tiny
from tests.hq.bake.models import FILE_TYPES
from tests.hq.test_gguf_file import relative

ROOT = Path(__file__).parents[3]
TYPES = [kind for kind in FILE_TYPES if kind != "IQ4_XS"]
SMALL = ("F16", "Q3_K", "Q5_K", "Q6_K")
NEURONS = [(0, 0), (0, 511), (1, 7), (1, 300)]


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    """As the package gguf reads them."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def dense(tensor: gguf.ReaderTensor) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)


def test_a_weight_is_its_codes_times_the_scales_of_its_block(typed):
    """The layouts of Q8_0 (d, 32 codes) and Q4_1 (d, m, 32 codes of 4 bits), written out."""
    name, row = "blk.1.ffn_up.weight", 7
    rows = {
        kind: tensors(typed(kind))[name].data[row].view(np.uint8).reshape(-1, size)
        for kind, size in (("Q8_0", 34), ("Q4_1", 20))
    }
    codes = rows["Q8_0"][:, 2:].view(np.int8).astype(float)
    d = rows["Q8_0"][:, :2].copy().view(np.float16)
    expected = {"Q8_0": (d * codes, abs(d * codes), np.spacing(abs(d)) * abs(codes))}
    packed = rows["Q4_1"][:, 4:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=1).astype(float)
    d, m = (rows["Q4_1"][:, at : at + 2].copy().view(np.float16) for at in (0, 2))
    ulps = np.spacing(abs(d)) * codes + np.spacing(abs(m))
    expected["Q4_1"] = (d * codes + m, abs(d * codes) + abs(m), ulps)
    for kind, parts in expected.items():
        found = GGUFModel(typed(kind)).neuron_weights(1, row)
        for part, values in zip(parts, (found.values, found.magnitudes, found.ulps), strict=True):
            np.testing.assert_allclose(values[: part.size], part.ravel(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.3, 2.0])
def test_rows_are_scaled_and_all_else_stays(kind, alpha, typed, tmp_path):
    source, target = typed(kind), tmp_path / "baked.gguf"
    record = bake(source, target, dict.fromkeys(NEURONS, alpha))
    before, after = tensors(source), tensors(target)
    assert list(before) == list(after)
    for name, old in before.items():
        new = after[name]
        assert (new.tensor_type, list(new.shape)) == (old.tensor_type, list(old.shape))
        layer = int(name.split(".")[1]) if name.startswith("blk") else None
        rows = [i for place, i in NEURONS if place == layer] if "ffn_up" in name else []
        if name.endswith(".bias"):
            kept = np.delete(old.data, rows), np.delete(new.data, rows)
        else:
            kept = (np.delete(tensor.data, rows, axis=0) for tensor in (old, new))
        np.testing.assert_array_equal(*kept)
        if rows:
            assert name.endswith(".bias") or old.tensor_type.name == kind
            wanted, found = alpha * dense(old)[rows], dense(new)[rows]
            # Half a unit of FP16 is 2^-11 of a number or 2^-25, before codes of up to 63·127.
            np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=63 * 127 * 2.0**-25)
            if record.exact:
                np.testing.assert_allclose(found, wanted, rtol=1e-6)
    # Half of a number below 2^-14 may have a bit too many for FP16: few weights are so small,
    # superscales of K-quants often.
    assert record.exact or alpha == 0.3 or (alpha == 0.5 and kind in SMALL)


@pytest.mark.parametrize("kind", TYPES)
def test_undone_it_is_the_original(kind, typed, tmp_path):
    source = typed(kind)
    bake(source, tmp_path / "baked.gguf", dict.fromkeys(NEURONS, 0.0))
    undo(tmp_path / "baked.gguf", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.3])
def test_llama_cpp_computes_what_its_callback_does(kind, alpha, typed, tmp_path):
    source, factors = typed(kind), dict.fromkeys(NEURONS, alpha)
    bake(source, tmp_path / "baked.gguf", factors)
    verification = verify_baked(tmp_path / "baked.gguf", source, factors)
    assert verification.is_verified, verification.problems
    assert verification.effect > 0.05
    if verification.exact:
        assert verification.logits == 0
        assert verification.units == verification.rows == 0
    else:
        assert verification.logits < verification.effect
        assert 0 < verification.units <= 0.5
        assert 0 < verification.rows <= 1
        assert set(verification.nearest) == {alpha}


@given(
    alphas=st.dictionaries(
        st.tuples(st.integers(0, tiny.LAYERS - 1), st.integers(0, tiny.D_FF - 1)),
        st.floats(0, 16) | st.just(0.0) | st.just(1.0),
        min_size=1,
        max_size=5,
    ),
    kind=st.sampled_from(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]),
    alignment=st.sampled_from([None, 1, 8, 64, 4096]),
    trailing=st.binary(max_size=50),
)
@settings(max_examples=40)
def test_any_alphas_of_any_neurons_are_baked_and_undone(alphas, kind, alignment, trailing):
    with tempfile.TemporaryDirectory() as folder:
        source, baked, again = (Path(folder) / name for name in ("a.gguf", "b.gguf", "c.gguf"))
        tiny.write(source, kind, alignment=alignment)
        with source.open("ab") as file:
            file.write(trailing)
        record = bake(source, baked, alphas)
        assert record == read_record(baked)
        assert record.factors == alphas
        before, after = GGUFFile(source), GGUFFile(baked)
        assert after.header.data_start % after.header.alignment == 0
        for (layer, index), alpha in alphas.items():
            name = f"blk.{layer}.ffn_up.weight"
            wanted = alpha * before.dense(name)[index].astype(np.float64)
            found = after.dense(name)[index]
            # Q4_1's and Q5_1's two scales may cancel.
            size = 2e-3 * np.abs(wanted).max() + 1e-5
            np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=size)
        assert set(after.metadata) - set(before.metadata) == {KEY}
        assert after.identity.norm_digest == before.identity.norm_digest
        undo(baked, again)
        assert again.read_bytes() == source.read_bytes()


def test_the_key_of_the_record_does_not_change_between_versions():
    """Files that an earlier hq baked have it."""
    assert KEY == "hq.bake.record"


def test_a_file_that_names_its_source_still_does(typed, tmp_path):
    bake(typed("Q4_0"), tmp_path / "baked.gguf", {(0, 3): 0.5})
    assert GGUFFile(tmp_path / "baked.gguf").identity == GGUFFile(typed("Q4_0")).identity


# Other architectures


def test_only_the_up_half_of_a_fused_projection_changes(tmp_path):
    source = tiny.write(tmp_path / "a.gguf", "Q8_0", weights=relative("phi3"), architecture="phi3")
    bake(source, tmp_path / "b.gguf", {(1, 5): 0.5})
    old, new = (
        dense(tensors(path)["blk.1.ffn_up.weight"]) for path in (source, tmp_path / "b.gguf")
    )
    np.testing.assert_array_equal(np.flatnonzero((old != new).any(1)), [tiny.D_FF + 5])
    np.testing.assert_array_equal(new[tiny.D_FF + 5], 0.5 * old[tiny.D_FF + 5])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_with_gelu_the_column_of_down_is_scaled(kind, tmp_path):
    source = tiny.write(tmp_path / "a.gguf", kind, weights=relative("gpt2"), architecture="gpt2")
    bake(source, tmp_path / "b.gguf", {(1, 5): 0.5})
    before, after = tensors(source), tensors(tmp_path / "b.gguf")
    changed = [name for name in before if not np.array_equal(before[name].data, after[name].data)]
    assert changed == ["blk.1.ffn_down.weight"]
    old, new = (dense(found["blk.1.ffn_down.weight"]) for found in (before, after))
    np.testing.assert_array_equal(np.flatnonzero((old != new).any(0)), [5])
    np.testing.assert_array_equal(new[:, 5], 0.5 * old[:, 5])


def test_with_gelu_a_quantized_column_is_rejected_with_the_reason(tmp_path):
    source = tiny.write(tmp_path / "a.gguf", "Q8_0", weights=relative("gpt2"), architecture="gpt2")
    with pytest.raises(HQError, match=r"no gate.*Q8_0 32 columns share a block's scale.*F32, F16"):
        bake(source, tmp_path / "b.gguf", {(1, 5): 0.5})
    assert not (tmp_path / "b.gguf").exists()


# Bad input


def test_a_type_whose_scales_are_not_known_is_named(typed, tmp_path):
    with pytest.raises(HQError, match=r"blk\.0\.ffn_up\.weight in IQ4_XS, into which"):
        bake(typed("IQ4_XS"), tmp_path / "b.gguf", {(0, 1): 0.5})


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({}, "No neuron is named"),
        ({(0, 128): 0.5}, r"Neuron \(0, 128\) is not in this model"),
        ({(3, 0): 0.5}, r"Neuron \(3, 0\) is not in this model"),
        ({(0, 0): -0.5}, "must be 0 or more"),
        ({(0, 0): float("nan")}, "must be 0 or more"),
        ({(0, 0): 1e9}, r"α = 1e\+09 makes blk\.0\.ffn_up\.weight .*overflow F16"),
    ],
)
def test_bad_factors_are_refused_before_anything_is_written(factors, words, whole, tmp_path):
    with pytest.raises(HQError, match=words):
        bake(whole, tmp_path / "b.gguf", factors)
    assert not list(tmp_path.iterdir())


def test_the_largest_alpha_that_is_named_can_be_baked(whole, tmp_path):
    with pytest.raises(HQError, match="use at most") as refused:
        bake(whole, tmp_path / "b.gguf", {(0, 0): 1e9, (1, 1): 1.0})
    most = float(str(refused.value).split("use at most ")[1].rstrip("."))
    bake(whole, tmp_path / "b.gguf", {(0, 0): most})
    with pytest.raises(HQError, match="use at most"):
        bake(whole, tmp_path / "c.gguf", {(0, 0): 1.01 * most})


def test_what_is_baked_is_not_baked_again(whole, tmp_path):
    bake(whole, tmp_path / "b.gguf", {(0, 0): 0.5})
    with pytest.raises(HQError, match=r"baked already.*bake its original"):
        bake(tmp_path / "b.gguf", tmp_path / "c.gguf", {(0, 1): 0.5})


def test_a_target_that_is_there_stays(whole, tmp_path):
    (tmp_path / "b.gguf").write_text("mine", encoding="utf-8")
    with pytest.raises(HQError, match="exists already"):
        bake(whole, tmp_path / "b.gguf", {(0, 0): 0.5})
    bake(whole, tmp_path / "c.gguf", {(0, 0): 0.5})
    with pytest.raises(HQError, match="exists already"):
        undo(tmp_path / "c.gguf", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_text(encoding="utf-8") == "mine"


def test_scales_that_are_not_finite_are_refused(tmp_path):
    weights = tiny.llama_weights()
    weights["blk.0.ffn_up.weight"][4, 9] = np.nan
    source = tiny.write(tmp_path / "a.gguf", "F32", weights=weights)
    with pytest.raises(HQError, match=r"scales in blk\.0\.ffn_up\.weight that are not finite"):
        bake(source, tmp_path / "b.gguf", {(0, 4): 0.5})


def test_what_was_not_baked_cannot_be_undone(whole, tmp_path):
    for ask in (read_record, lambda path: undo(path, tmp_path / "b.gguf")):
        with pytest.raises(HQError, match="has no baking record"):
            ask(whole)


def edited(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))


def test_a_baked_file_that_was_changed_is_not_undone(whole, tmp_path):
    baked = tmp_path / "b.gguf"
    bake(whole, baked, {(0, 0): 0.5})
    raw = bytearray(baked.read_bytes())
    raw[-1] ^= 1
    baked.write_bytes(raw)
    with pytest.raises(HQError, match="was changed after it was baked"):
        undo(baked, tmp_path / "c.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["b.gguf"]


def test_a_record_that_another_tool_moved_is_not_undone(whole, tmp_path):
    record = bake(whole, tmp_path / "b.gguf", {(0, 0): 0.5})
    metadata = {KEY: record.model_dump_json(), "another.key": 1}
    moved = tiny.write(tmp_path / "c.gguf", "F16", changes=metadata)
    with pytest.raises(HQError, match="was changed after it was baked"):
        undo(moved, tmp_path / "d.gguf")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"schema_version":1', b'"schema_version":7', "schema_version"),
        (b'"tensor":"blk.0', b'"tensor":"blk.9', "no tensor 'blk.9"),
        (b'"start":0', b'"start":9', "was changed after"),
        (b'"step":2', b'"step":9', "was changed after|not fit"),
        (b'"count":64', b'"count":63', "need 126 bytes, not 128"),
        (b'"original":"', b'"original":"!', "kept.0"),
        (b'"padding":"00', b'"padding":"xx', "padding"),
        (b'{"schema', b'["schema', "Invalid JSON"),
    ],
)
def test_a_record_that_was_tampered_with_is_refused(old, new, words, whole, tmp_path):
    baked = tmp_path / "b.gguf"
    bake(whole, baked, {(0, 0): 0.5})
    if len(new) != len(old):
        raw = baked.read_bytes()
        at = raw.index(old) + len(old)
        raw = raw[: at - 1] + new[len(old) - 1 : len(new)] + raw[at + 1 :]
        baked.write_bytes(raw)
    else:
        edited(baked, old, new)
    with pytest.raises(HQError, match=words):
        undo(baked, tmp_path / "c.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["b.gguf"]


# What is not verified


def test_a_flipped_bit_anywhere_is_not_verified(whole, tmp_path):
    baked, factors = tmp_path / "b.gguf", {(0, 3): 0.5}
    bake(whole, baked, factors)
    file = GGUFFile(baked)
    up = file.tensors["blk.0.ffn_up.weight"]
    offsets = {
        "of its tensors differ": up.offset + 2 * up.shape[0] + 1,  # in another row
        "of its header differ": baked.read_bytes().index(b"tiny llama"),
        "off by up to": up.offset + 3 * 2 * up.shape[0] + 1,  # in the row itself
    }
    raw = baked.read_bytes()
    for words, offset in offsets.items():
        wrong = bytearray(raw)
        wrong[offset] ^= 1
        baked.write_bytes(wrong)
        assert words in verify_baked(baked, whole, factors).problems[0]
    for scale in (np.inf, np.nan):
        wrong = bytearray(raw)
        row = up.offset + 3 * 2 * up.shape[0]
        wrong[row : row + 2] = np.float16(scale).tobytes()
        baked.write_bytes(wrong)
        assert "off by up to" in verify_baked(baked, whole, factors).problems[0]


def test_other_neurons_or_another_model_are_not_verified(whole, tmp_path):
    baked, factors = tmp_path / "b.gguf", {(0, 3): 0.5, (1, 4): 0.5}
    bake(whole, baked, factors)
    for other in ({(0, 3): 0.5}, {(0, 3): 0.25, (1, 4): 0.5}):
        (problem,) = verify_baked(baked, whole, other).problems
        assert "was to be scaled" in problem
    (problem,) = verify_baked(baked, tiny.write(tmp_path / "q.gguf", "Q8_0"), factors).problems
    assert "another file" in problem
    stranger = tiny.write(tmp_path / "s.gguf", "F16", seed=1)
    problems = verify_baked(baked, stranger, factors).problems
    assert any("of its tensors differ" in problem for problem in problems)
    assert any("does not have the original bytes" in problem for problem in problems)


def test_logits_that_differ_although_nothing_was_rounded_are_not_verified(
    whole, tmp_path, monkeypatch
):
    pytest.importorskip("llama_cpp")
    bake(whole, tmp_path / "b.gguf", {(0, 3): 0.0})
    right = GGUFModel.logits
    monkeypatch.setattr(
        GGUFModel,
        "logits",
        lambda self, *args: [found + (self.record is not None) for found in right(self, *args)],
    )
    (problem,) = verify_baked(tmp_path / "b.gguf", whole, {(0, 3): 0.0}).problems
    assert problem == "its logits are off by up to 1 although nothing was rounded"


def test_the_nearest_exact_alpha_is_exact_when_it_is_baked(typed, tmp_path):
    for kind in ("Q4_K", "Q6_K"):
        factors = dict.fromkeys(NEURONS, 0.3)
        (alpha,) = nearest_factors(typed(kind), factors).values()
        assert bake(typed(kind), tmp_path / kind, dict.fromkeys(NEURONS, alpha)).exact


# A killed process, and a full disk

KILLED = """
import os, signal, sys
from pathlib import Path
import hq.suppress.bake.gguf as module
from hq.suppress.bake import bake

def half(source, start, out):
    out.write(source.read(1000))
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)

module.copy_from = half
bake(Path(sys.argv[1]), Path(sys.argv[2]), {(0, 0): 0.5})
"""


def test_killed_in_the_middle_it_leaves_no_target(whole, tmp_path):
    target = tmp_path / "b.gguf"
    command = (sys.executable, "-c", KILLED, str(whole), str(target))
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    bake(whole, target, {(0, 0): 0.5})
    undo(target, tmp_path / "c.gguf")
    assert (tmp_path / "c.gguf").read_bytes() == whole.read_bytes()


def test_a_full_disk_leaves_nothing(whole, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hq.suppress.bake.gguf.copy_from", full)
    with pytest.raises(OSError, match="No space"):
        bake(whole, tmp_path / "b.gguf", {(0, 0): 0.5})
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_copy_inside_the_kernel_is_read(whole, tmp_path, monkeypatch):
    bake(whole, tmp_path / "a.gguf", {(0, 0): 0.5})

    def cannot(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", cannot)
    bake(whole, tmp_path / "b.gguf", {(0, 0): 0.5})
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    bake(whole, tmp_path / "c.gguf", {(0, 0): 0.5})
    assert len({(tmp_path / f"{name}.gguf").read_bytes() for name in "abc"}) == 1
    monkeypatch.setattr(os, "copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O")))
    with pytest.raises(OSError, match="I/O"):
        bake(whole, tmp_path / "d.gguf", {(0, 0): 0.5})


def test_the_source_is_only_read(typed, tmp_path):
    source = Path(shutil.copy(typed("Q4_0"), tmp_path / "a.gguf"))
    source.chmod(0o444)
    before = source.read_bytes(), source.stat().st_mtime_ns
    bake(source, tmp_path / "b.gguf", {(0, 0): 0.0})
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]
