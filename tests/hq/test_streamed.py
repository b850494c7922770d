"""Streamed traces: equal to those of the model in memory, resumed by layer, refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hq.backends.streamed.backend import StreamedBackend
from hq.backends.streamed.passes import Passes
from hq.backends.streamed.states import States
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from hq.neurons.cett import SPANS, Measure
from tests import decoders, tiny

Checkpoint = Callable[[str], Path]
MEASURES: tuple[Measure, ...] = ("sum", "output", "contribution")


def assert_equal(path: Path, precision: str, shared: int = 5, budget: int = 64) -> None:
    """The streamed backend gives what the model in memory gives."""
    exchanges = tiny.exchanges(shared=shared)
    identity = checkpoint_identity(path)
    with TorchBackend(path, precision, "cpu", budget, identity) as resident:
        expected = list(resident.trace(exchanges, MEASURES, SPANS))
        norms, audit, size = resident.norms, resident.audit(), resident.weight_bytes()
        ffns = list(resident.ffns())
    with StreamedBackend(path, precision, "cpu", budget, identity) as streamed:
        found = list(streamed.trace(exchanges, MEASURES, SPANS))
        assert [batch.number for batch in found] == [batch.number for batch in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_allclose(one.values, other.values, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(streamed.norms, norms, rtol=1e-6)
        assert streamed.audit() == audit
        if "vision_config" not in (path / "config.json").read_text(encoding="utf-8"):
            assert streamed.weight_bytes() == size  # in memory, vision towers are quantized too
        for ffn, other in zip(streamed.ffns(), ffns, strict=True):
            np.testing.assert_array_equal(ffn.down, other.down)
            np.testing.assert_array_equal(ffn.up, other.up)
            assert (ffn.bits, ffn.rounding_error) == (other.bits, other.rounding_error)


@pytest.mark.parametrize("precision", ["fp16", "nf4", "int8"])
def test_every_family_gives_the_trace_of_the_model_in_memory(
    family: str, precision: str, checkpoint: Checkpoint
) -> None:
    assert_equal(checkpoint(family), precision, shared=12)  # longer than sliding windows


@pytest.mark.parametrize("precision", ["fp16", "nf4"])
def test_every_family_predicts_as_in_memory(
    family: str, precision: str, checkpoint: Checkpoint
) -> None:
    path, exchanges = checkpoint(family), tiny.exchanges(shared=12)
    with TorchBackend(path, precision, "cpu", 64) as resident:
        head = resident.head
        expected = list(resident.predictions(exchanges))
    backend = StreamedBackend(path, precision, "cpu", 64)
    assert len(backend.head.weight) == len(head.weight)
    np.testing.assert_allclose(backend.head.factor, head.factor, rtol=1e-6)
    for one, other in zip(backend.predictions(exchanges), expected, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_allclose(one.hidden, other.hidden, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(one.entropy, other.entropy, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "precision",
    ["bf16", "nf4-dq", "fp4", "torchao-int8", "torchao-int4", "hqq-4", "fp8", "nvfp4", "mxfp4"],
)
def test_every_precision_that_is_made_by_layer_gives_the_same_trace(
    precision: str, checkpoint: Checkpoint
) -> None:
    assert_equal(checkpoint("qwen2"), precision)  # has biases


@pytest.mark.parametrize("precision", ["fp16", "bf16", "nf4", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_wide_weights_are_rounded_as_in_memory(
    precision: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    made = tiny.randomized(tiny.model("gemma3_text", hidden_size=80), 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1 + 1e-4)  # no FP16 values
    made.to(dtype).save_pretrained(tmp_path)
    assert_equal(tmp_path, precision)


def test_shards_and_tied_embeddings(tmp_path: Path) -> None:
    made = tiny.model("llama", tie_word_embeddings=True).half()
    made.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_equal(tmp_path, "fp16")


def test_texts_without_a_shared_prefix(checkpoint: Checkpoint) -> None:
    assert_equal(checkpoint("gemma2"), "fp16", shared=0)


UNLIKE = ("bloom", "cohere2", "gpt_neo", "gptj", "mpt", "qwen3_vl")  # masks, buffers, positions


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in UNLIKE else pytest.mark.slow)
        for name in sorted(set(decoders.RECORDED) - set(tiny.FAMILIES))
    ],
)
def test_architectures_with_a_record(name: str, tmp_path: Path) -> None:
    assert_equal(decoders.save(decoders.RECORDED[name](), tmp_path), "fp16", shared=12)


# --- one pass for several precisions, and its resume


def test_one_pass_reads_the_files_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, exchanges = checkpoint("llama"), tiny.exchanges()
    passes = Passes(tmp_path, ("fp16", "nf4"))
    seen: list[int] = []
    passes.watch = lambda done, _: seen.append(done)
    for precision in ("fp16", "nf4", "int8"):
        backend = StreamedBackend(path, precision, "cpu", passes=passes)
        found = list(backend.trace(exchanges))
        expected = list(StreamedBackend(path, precision, "cpu").trace(exchanges))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.values, other.values)
    assert seen == [1, 2, 3, 1, 2, 3]  # one pass for fp16 and nf4, and one for int8
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".npy", ".bin")]


@pytest.mark.parametrize("name", ["gemma3_text", "gptj", "mpt", "bloom", "persimmon", "gpt_neo"])
def test_a_stopped_pass_continues_with_the_next_layer(name: str, tmp_path: Path) -> None:
    path = decoders.save(decoders.RECORDED[name](), tmp_path / "model")
    exchanges, passes = tiny.exchanges(shared=12), Passes(tmp_path, ("fp16", "nf4"))

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    passes.watch = stop
    backend = StreamedBackend(path, "fp16", "cpu", passes=passes)
    with pytest.raises(KeyboardInterrupt):
        next(backend.trace(exchanges))
    seen: list[int] = []
    again = Passes(tmp_path, ("fp16", "nf4"))
    again.watch = lambda done, _: seen.append(done)
    for precision in ("fp16", "nf4"):
        backend = StreamedBackend(path, precision, "cpu", passes=again)
        (found,) = backend.trace(exchanges)
        (expected,) = StreamedBackend(path, precision, "cpu").trace(exchanges)
        np.testing.assert_array_equal(found.values, expected.values)
    assert seen == list(range(3, backend.identity.n_layers + 1))


def test_a_pass_that_is_killed_inside_a_layer_repeats_the_layer(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, exchanges = checkpoint("llama"), tiny.exchanges()
    write, calls = States.write, []

    def failing(self: States, layer: int, number: int, states: torch.Tensor) -> None:
        calls.append(layer)
        write(self, layer, number, states)
        if layer == 2 and calls.count(2) == 2:  # in the second layer, after some batches
            raise KeyboardInterrupt

    backend = StreamedBackend(path, "fp16", "cpu", 32, passes=Passes(tmp_path, ("fp16",)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(States, "write", failing)
        next(backend.trace(exchanges))
    again = Passes(tmp_path, ("fp16",))
    seen: list[int] = []
    again.watch = lambda done, _: seen.append(done)
    found = list(StreamedBackend(path, "fp16", "cpu", 32, passes=again).trace(exchanges))
    expected = list(StreamedBackend(path, "fp16", "cpu", 32).trace(exchanges))
    assert len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    assert seen == [2, 3]


def test_batches_that_are_written_are_left_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    exchanges, passes = tiny.exchanges(), Passes(tmp_path, ("fp16",))
    backend = StreamedBackend(checkpoint("llama"), "fp16", "cpu", 32, passes=passes)
    numbers = [batch.number for batch in backend.trace(exchanges)]
    left = [batch.number for batch in backend.trace(exchanges, skip=frozenset(numbers[1:]))]
    assert left == numbers[:1]
    passes.watch = lambda *_: pytest.fail("nothing is left to trace")
    assert not list(backend.trace(exchanges, skip=frozenset(numbers)))


# --- refusals, in one sentence


@pytest.mark.parametrize("precision", ["gptq-4", "awq-4", "gguf-q8_0"])
def test_a_calibrated_precision_is_rejected(precision: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(HQError, match=f"at {precision} cannot be .* made from one layer alone"):
        StreamedBackend(checkpoint("llama"), precision, "cpu")


def test_a_mixture_is_rejected(checkpoint: Checkpoint) -> None:
    with pytest.raises(HQError, match="mixtures of experts"):
        StreamedBackend(checkpoint("mixtral"), "fp16", "cpu")


def test_a_detected_architecture_is_rejected(tmp_path: Path) -> None:
    path = decoders.save(decoders.DETECTED["stablelm"](), tmp_path)
    with pytest.raises(HQError, match="no record of the model type 'stablelm'"):
        StreamedBackend(path, "fp16", "cpu")


def test_a_quantized_checkpoint_is_rejected(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("llama"), tmp_path / "quantized")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(HQError, match="quantized already"):
        StreamedBackend(path, "nf4", "cpu")


def test_what_needs_the_whole_model_is_rejected(checkpoint: Checkpoint) -> None:
    backend = StreamedBackend(checkpoint("llama"), "fp16", "cpu")
    with pytest.raises(HQError, match="no responses: run this step on a machine"):
        backend.decoding()
    with pytest.raises(HQError, match="no hidden states"):
        backend.hidden_states(tiny.exchanges())


def test_a_missing_tensor_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("llama"), tmp_path / "broken")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(HQError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        StreamedBackend(path, "fp16", "cpu")
