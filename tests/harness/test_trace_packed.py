"""`hq trace` and `hq compare` on packed checkpoints, whose neurons are another's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hq.neurons.neuron_set import NeuronSet
from tests import tiny
from tests.block_float_files import KINDS, save
from tests.harness import study
from tests.harness.test_bad_input import is_one_sentence
from tests.harness.test_packed_study import cut, permuted, rotated
from tests.packed_files import PACKINGS, save_packed


@pytest.fixture
def trace(finished, tiny_study, hq):
    """Traces the finished study's samples at a precision, into a folder of its name."""
    samples = finished / "runs" / "tiny" / "samples.jsonl"

    def run(model: Path, precision: str, *more: object):
        where = ("--samples", samples, "--into", precision, "--model", model, "--quiet")
        return hq("trace", *where, "--precision", precision, *more)

    return run


def compare(hq, finished, variant):
    run = finished / "runs" / "tiny"
    return hq(
        *("compare", "--samples", run / "samples.jsonl", "--neurons", run / "neurons.json"),
        *("--reference", "fp16", "--variant", variant, "--json"),
    )


def test_a_packed_checkpoint_of_the_source_is_compared(trace, finished, tiny_study, tmp_path, hq):
    source = tiny_study.parent / "model"
    packed = save_packed(source, tmp_path / "packed", PACKINGS["gptq-8"])
    assert trace(source, "fp16").code == 0
    assert trace(packed, "gptq-8", "--source", source).code == 0
    facts = [
        json.loads(Path(f"{p}/trace.json").read_text(encoding="utf-8")) for p in ("fp16", "gptq-8")
    ]
    assert facts[0]["model"] == facts[1]["model"]
    assert facts[1]["audit"][0]["storage"] == "gptq 8 bit g64 sym"
    outcome = compare(hq, finished, "gptq-8")
    assert outcome.code == 0, outcome
    (row,) = (r for r in json.loads(outcome.out)["fidelity"] if r["group"] == "probe")
    assert row["correlation"]["value"] > 0.99


def test_moved_neurons_are_traced_where_the_source_has_them(trace, tiny_study, tmp_path):
    source = tiny_study.parent / "model"
    for name, change in (("as it is", None), ("moved", permuted)):
        packed = save_packed(source, tmp_path / name, PACKINGS["gptq-8"], change)
        assert trace(packed, "gptq-8", "--source", source).code == 0
        Path("gptq-8").rename(f"traces {name}")
    plain, moved = (np.load(f"traces {n}/sum.answer.npy") for n in ("as it is", "moved"))
    assert np.corrcoef(plain.ravel(), moved.ravel())[0, 1] > 0.999


def test_a_pruned_neuron_is_missing_where_the_probe_does_not_need_it(
    trace, finished, tiny_study, tmp_path, hq
):
    source = tiny_study.parent / "model"
    probe = NeuronSet.load(finished / "runs" / "tiny" / "neurons.json")
    spare = next(i for i in range(128) if i not in probe.flat)
    assert trace(source, "fp16").code == 0
    for flat, refused in ((spare, False), (int(probe.flat[0]), True)):
        place = divmod(flat, 128)
        packed = save_packed(source, tmp_path / f"{flat}", PACKINGS["gptq-8"], cut(place))
        assert trace(packed, "gptq-8", "--source", source).code == 0
        facts = json.loads(Path("gptq-8/trace.json").read_text(encoding="utf-8"))
        assert facts["missing"] == facts["unmatched"] == [flat]
        values = np.load("gptq-8/sum.answer.npy")
        assert np.isfinite(values).all()
        assert (values.reshape(len(values), -1) == 0).all(axis=0).nonzero()[0].tolist() == [flat]
        outcome = compare(hq, finished, "gptq-8")
        if refused:
            is_one_sentence(outcome, f"neurons are not found, {place} first")
        else:
            assert outcome.code == 0, outcome
        Path("gptq-8").rename(f"traces {flat}")


def test_without_a_source_it_is_a_model_of_its_own(trace, finished, tiny_study, tmp_path, hq):
    source = tiny_study.parent / "model"
    packed = save_packed(source, tmp_path / "packed", PACKINGS["compressed-4"])
    assert trace(source, "fp16").code == 0
    outcome = trace(packed, "compressed-4")
    assert outcome.code == 0
    assert "not compared with its source" in outcome.err
    facts = json.loads(Path("compressed-4/trace.json").read_text(encoding="utf-8"))
    assert {row["storage"] for row in facts["audit"]} == {
        "compressed-tensors 4 bit g64 sym, not compared with its source"
    }
    is_one_sentence(compare(hq, finished, "compressed-4"), "fingerprint")


def test_an_fp8_checkpoint_without_a_source_is_marked(trace, tiny_study, tmp_path):
    source = tiny_study.parent / "model"
    save(source, tmp_path / "stored", KINDS["fp8-channel"])
    stored = "float8_e4m3fn, a scale per row, dequantized to float32"
    for model, storage, marked in (
        (source, stored, False),
        (tmp_path / "stored", f"{stored}, activations not quantized", True),
    ):
        outcome = trace(model, "fp8")
        assert outcome.code == 0, outcome
        assert ("not compared with its source" in outcome.err) == marked
        facts = json.loads(Path("fp8/trace.json").read_text(encoding="utf-8"))
        marks = ", not compared with its source" if marked else ""
        assert {row["storage"] for row in facts["audit"]} == {storage + marks}
        Path("fp8").rename(f"traced {marked}")
    is_one_sentence(trace(tmp_path / "stored", "fp16"), "name its own precision (fp8)")


def test_neurons_of_another_model_are_refused(trace, tiny_study, tmp_path):
    source = tiny_study.parent / "model"
    for name, model, change, words in (
        ("mixed", source, rotated, "layers 1 (W_down mixes neurons)"),
        ("other", study.checkpoint(tmp_path / "another", seed=5), None, "in 3 layers: another"),
    ):
        packed = save_packed(model, tmp_path / name, PACKINGS["gptq-8"], change)
        is_one_sentence(trace(packed, "gptq-8", "--source", source), words)
        assert not Path("gptq-8").exists()


def test_another_number_of_layers_is_refused(trace, tiny_study, tmp_path):
    tiny.model("llama", num_hidden_layers=2).half().save_pretrained(tmp_path / "short")
    packed = save_packed(tmp_path / "short", tmp_path / "packed", PACKINGS["gptq-8"])
    source = tiny_study.parent / "model"
    is_one_sentence(trace(packed, "gptq-8", "--source", source), "It has 2 layers, not 3")


def test_a_packed_source_is_refused(trace, tiny_study, tmp_path):
    packed = save_packed(tiny_study.parent / "model", tmp_path / "packed", PACKINGS["gptq-8"])
    is_one_sentence(trace(packed, "gptq-8", "--source", packed), "name the dense checkpoint")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("kind", ["gptq-4", "awq-4", "compressed-4"])
def test_a_packed_checkpoint_at_a_dense_precision_is_one_sentence(
    kind, precision, trace, tiny_study, tmp_path
):
    packed = save_packed(tiny_study.parent / "model", tmp_path / "packed", PACKINGS[kind])
    is_one_sentence(trace(packed, precision), f"does not run as {precision}")
    assert not Path(precision).exists()


def test_a_packed_checkpoint_of_another_format_is_refused(trace, tiny_study, tmp_path):
    """8 bits: 2% off, which the limit for its bits would let pass. The config is refused first."""
    source, packing = tiny_study.parent / "model", replace(PACKINGS["gptq-8"], format="gptq_v2")
    packed = save_packed(source, tmp_path / "packed", packing)
    file = packed / "config.json"
    file.write_text(file.read_text(encoding="utf-8").replace("gptq_v2", "gptq"), encoding="utf-8")
    for more in ((), ("--source", source)):
        is_one_sentence(trace(packed, "gptq-8", *more), "zero points are those of 'gptq_v2'")


def test_the_kind_is_the_one_that_is_asked_for(trace, tiny_study, tmp_path):
    source = tiny_study.parent / "model"
    packed = save_packed(source, tmp_path / "packed", PACKINGS["awq-4"])
    is_one_sentence(trace(packed, "gptq-4", "--source", source), "does not run as gptq-4")
    is_one_sentence(trace(source, "gptq-4", "--source", source), "name a packed checkpoint")
