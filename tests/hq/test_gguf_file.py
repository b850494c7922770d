"""GGUF files: their shape, tensors, norms, audit, architectures and identity."""

import struct
import sys

import gguf
import numpy as np
import pytest

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.norms import dequantized_column_norms
from hq.gguf.types import TYPES, GGMLType, dequantized
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from tests.hq import gguf_files as tiny
from tests.hq.gguf_files import overwrite

TYPE = gguf.GGMLQuantizationType


def kernel(layer: int, kind: GGMLType) -> str:
    """The type that CPU kernels multiply in."""
    return kind.activations


# Contents


def test_a_file_has_a_shape(whole):
    file = GGUFFile(whole)
    assert (file.architecture, file.n_layers, file.d_ff) == ("llama", tiny.LAYERS, tiny.D_FF)
    assert (file.d_model, file.vocabulary) == (tiny.D_MODEL, tiny.VOCABULARY)
    assert file.tokens == tuple(tiny.TOKENS)
    assert file.metadata["tokenizer.ggml.merges"] == tuple(tiny.MERGES)
    assert file.metadata["tokenizer.ggml.token_type"].tolist()[:5] == [3, 3, 3, 3, 1]
    assert file.metadata["tokenizer.ggml.add_bos_token"] is False
    assert file.metadata["llama.rope.freq_base"] == 10000.0


def test_tensors_and_metadata_are_those_that_the_reader_of_gguf_finds(whole):
    file, reader = GGUFFile(whole), gguf.GGUFReader(whole)
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        tensor_info = file.tensors[tensor.name]
        assert (tensor_info.offset, tensor_info.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert (tensor_info.shape, tensor_info.type.name) == (
            tuple(tensor.shape),
            tensor.tensor_type.name,
        )
        assert file.rows(tensor.name).tobytes() == tensor.data.tobytes()
    for key in file.metadata:
        value, other = file.metadata[key], reader.fields[key].contents()
        assert (list(value) if isinstance(value, tuple | np.ndarray) else value) == other
    assert file.weight_bytes() == sum(tensor.n_bytes for tensor in reader.tensors)


def test_the_types_are_those_of_the_package():
    known = {kind.number: (kind.name, kind.weights, kind.nbytes) for kind in TYPES.values()}
    package = {k.value: (k.name, *gguf.GGML_QUANT_SIZES[k]) for k in gguf.GGML_QUANT_SIZES}
    assert {number: package[number] for number in known} == known
    assert set(package) <= set(known), "gguf knows a new type: add it to hq/gguf/types.py"


def test_version_2_opens(copied):
    overwrite(copied, 4, struct.pack("<I", 2))
    assert GGUFFile(copied).header.version == 2


@pytest.mark.parametrize("alignment", [1, 8, 4096])
def test_another_alignment_opens(alignment, whole, tmp_path):
    path = tiny.write(tmp_path / "a.gguf", "F16", alignment=alignment)
    assert GGUFFile(path).header.alignment == alignment
    np.testing.assert_array_equal(GGUFFile(path).norms, GGUFFile(whole).norms)


def test_sizes_given_layer_by_layer_open_when_they_are_the_same(tmp_path):
    changes = {"llama.attention.head_count": [4] * 3, "llama.feed_forward_length": [128] * 3}
    assert GGUFFile(tiny.write(tmp_path / "a.gguf", changes=changes)).d_ff == tiny.D_FF


def test_norms_of_float_files_are_those_of_the_weights(tmp_path):
    weights = tiny.llama_weights()
    downs = [weights[f"blk.{layer}.ffn_down.weight"] for layer in range(tiny.LAYERS)]
    expected = np.stack([np.linalg.norm(down.astype(float), axis=0) for down in downs])
    for kind in ("F32", "F16"):
        norms = GGUFFile(tiny.write(tmp_path / f"{kind}.gguf", kind)).norms
        np.testing.assert_allclose(norms, expected, rtol=1e-7)
        assert norms.dtype == np.float32


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "BF16"])
def test_norms_of_quantized_files_are_those_of_the_round_trip(kind, tmp_path):
    quantization = TYPE[kind]
    file = GGUFFile(tiny.write(tmp_path / "a.gguf", kind))
    for layer in range(tiny.LAYERS):
        down = tiny.llama_weights()[f"blk.{layer}.ffn_down.weight"]
        back = gguf.quants.dequantize(gguf.quants.quantize(down, quantization), quantization)
        expected = np.linalg.norm(back.astype(float), axis=0)
        np.testing.assert_allclose(file.norms[layer], expected, rtol=1e-7)
        np.testing.assert_array_equal(file.dense(f"blk.{layer}.ffn_down.weight"), back)


def test_norms_do_not_depend_on_how_many_rows_are_read_at_a_time(monkeypatch):
    weights = np.random.default_rng(0).standard_normal((100, 32)).astype(np.float32)
    at_once = dequantized_column_norms(weights.view(np.uint8), TYPES[0])
    monkeypatch.setattr("hq.gguf.norms._ROWS", 7)
    np.testing.assert_allclose(
        dequantized_column_norms(weights.view(np.uint8), TYPES[0]), at_once, rtol=1e-7
    )


def test_weights_that_are_not_finite_are_rejected(tmp_path):
    weights = tiny.llama_weights()
    weights["blk.1.ffn_down.weight"][3, 5] = np.nan
    path = tiny.write(tmp_path / "a.gguf", "F32", weights=weights)
    with pytest.raises(HQError, match=r"blk\.1\.ffn_down\.weight has weights .* copy it again"):
        _ = GGUFFile(path).norms
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_type_that_the_package_cannot_read_is_named():
    with pytest.raises(HQError, match="does not read Q8_K: upgrade it"):
        dequantized(np.zeros((1, 292), dtype=np.uint8), TYPES[15])


def test_audit_counts_the_types_of_tensors(tmp_path):
    file = GGUFFile(tiny.write(tmp_path / "a.gguf", "Q4_0"))
    audit = file.audit(lambda layer, kind: f"{kind.activations} at {layer // 2}")
    rows = [(row.module, row.count, row.storage, row.compute) for row in audit]
    assert rows == [
        (module, count * layers, "q4_0", f"int8 at {half}")
        for module, count in (("attention", 4), ("ffn_down", 1), ("ffn_gate", 1), ("ffn_up", 1))
        for half, layers in ((0, 2), (1, 1))
    ]
    assert {row.bits_per_weight for row in audit} == {4.5}


def test_a_missing_package_is_named(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    file = GGUFFile(whole)  # opening does not need it
    with pytest.raises(HQError, match=r"pip install 'hq\[embedded\]'"):
        file.dense("blk.0.ffn_down.weight")


# Other architectures: a llama's tensors, and what each has beside or instead


KV, HEAD, D, D_FF = tiny.KV_HEADS * tiny.HEAD, tiny.HEAD, tiny.D_MODEL, tiny.D_FF
POST_NORMS = {"post_attention_norm.weight": D, "post_ffw_norm.weight": D}
QK_NORMS = {"attn_q_norm.weight": HEAD, "attn_k_norm.weight": HEAD}
VECTORS = {
    "qwen2": {"attn_q.bias": D, "attn_k.bias": KV, "attn_v.bias": KV},
    "qwen3": QK_NORMS,
    "gemma2": POST_NORMS,
    "gemma3": POST_NORMS | QK_NORMS,
    "gpt2": {
        f"{name}.bias": width
        for name, width in {
            "attn_norm": D, "attn_qkv": 3 * D, "attn_output": D,
            "ffn_norm": D, "ffn_up": D_FF, "ffn_down": D,
        }.items()
    },
}  # fmt: skip
FUSED = {
    "phi3": {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")},
    "gpt2": {"attn_qkv": ("attn_q", "attn_q", "attn_q"), "ffn_up": ("ffn_up",)},
}
DROPPED = {"gpt2": ("attn_k", "attn_v", "ffn_gate")}


def relative(architecture: str) -> dict[str, np.ndarray]:
    weights, draw = tiny.llama_weights(), np.random.default_rng(1)
    for prefix in (f"blk.{layer}." for layer in range(tiny.LAYERS)):
        for into, names in FUSED.get(architecture, {}).items():
            parts = [weights[f"{prefix}{name}.weight"] for name in names]
            for name in names:
                weights.pop(f"{prefix}{name}.weight", None)
            weights[f"{prefix}{into}.weight"] = np.concatenate(parts)
        for name in DROPPED.get(architecture, ()):
            del weights[f"{prefix}{name}.weight"]
        for name, width in VECTORS.get(architecture, {}).items():
            weights[prefix + name] = draw.random(width)
    if architecture == "gpt2":
        weights |= {"position_embd.weight": np.zeros((128, D)), "output_norm.bias": draw.random(D)}
    return weights


ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_opens_and_needs_each_of_its_tensors(architecture, tmp_path):
    weights = relative(architecture)
    path = tiny.write(tmp_path / "a.gguf", weights=weights, architecture=architecture)
    file = GGUFFile(path)
    down = weights["blk.2.ffn_down.weight"].astype(float)
    np.testing.assert_allclose(file.norms[2], np.linalg.norm(down, axis=0), rtol=1e-6)
    assert len(file.identity.norm_digest) == 16
    assert file.identity.architecture == {"gemma3": "gemma3_text"}.get(architecture, architecture)
    for name in (name for name in weights if not name.startswith(("blk.0", "blk.2"))):
        rest = {key: weight for key, weight in weights.items() if key != name}
        lacking = tiny.write(tmp_path / "b.gguf", weights=rest, architecture=architecture)
        with pytest.raises(HQError, match=r"b\.gguf is damaged \(it lacks the tensor .*copy it"):
            GGUFFile(lacking)


def test_fused_attention_opens_in_a_llama(tmp_path):
    weights = tiny.llama_weights()
    for layer in range(tiny.LAYERS):
        parts = [weights.pop(f"blk.{layer}.attn_{part}.weight") for part in "qkv"]
        weights[f"blk.{layer}.attn_qkv.weight"] = np.concatenate(parts)
    rows = GGUFFile(tiny.write(tmp_path / "a.gguf", weights=weights)).audit(kernel)
    assert sum(row.count for row in rows) == 5 * tiny.LAYERS


# Identity


def test_the_identity_of_a_file_of_unknown_origin_is_its_bytes(whole, copied, tmp_path):
    actual = GGUFFile(copied).identity
    assert actual == GGUFFile(whole).identity
    assert actual.name == "tiny llama"
    assert actual.fingerprint.startswith("gguf:")
    assert len(actual.fingerprint) == 21
    assert (actual.architecture, actual.n_layers, actual.d_ff) == ("llama", 3, 128)
    overwrite(copied, copied.stat().st_size - 1, b"\x01")
    assert GGUFFile(copied).identity.fingerprint != actual.fingerprint
    assert GGUFFile(copied).identity.norm_digest == actual.norm_digest
    other = GGUFFile(tiny.write(tmp_path / "other.gguf", seed=1)).identity
    assert other.norm_digest != actual.norm_digest


def test_metadata_do_not_change_the_fingerprint_and_the_stem_names_a_nameless_file(tmp_path, whole):
    path = tiny.write(tmp_path / "nameless.gguf", changes={"general.name": None})
    actual = GGUFFile(path).identity
    assert actual.name == "nameless"
    assert actual.fingerprint == GGUFFile(whole).identity.fingerprint


def test_quantizing_keeps_the_norm_digest(tmp_path, whole):
    quantized = GGUFFile(tiny.write(tmp_path / "a.gguf", "Q4_0")).identity
    assert quantized.norm_digest == GGUFFile(whole).identity.norm_digest
    assert quantized.fingerprint != GGUFFile(whole).identity.fingerprint


SOURCE = {
    "hq.source.name": "the source",
    "hq.source.fingerprint": "0123456789abcdef",
    "hq.source.architecture": "mistral",
    "hq.source.kin": "fedcba9876543210",
}


def test_a_file_that_names_its_source_has_its_identity(tmp_path):
    actual = GGUFFile(tiny.write(tmp_path / "a.gguf", changes=SOURCE)).identity
    assert actual == ModelIdentity(
        name="the source",
        fingerprint="0123456789abcdef",
        architecture="mistral",
        n_layers=tiny.LAYERS,
        d_ff=tiny.D_FF,
        norm_digest="fedcba9876543210",
    )
    without = tiny.write(tmp_path / "b.gguf", changes=SOURCE | {"hq.source.kin": None})
    assert GGUFFile(without).identity == actual.model_copy(update={"norm_digest": ""})


@pytest.mark.parametrize("key", ["name", "fingerprint", "architecture", "kin"])
def test_a_source_that_is_not_text_is_rejected(key, tmp_path):
    path = tiny.write(tmp_path / "a.gguf", changes=SOURCE | {f"hq.source.{key}": 3})
    with pytest.raises(HQError, match=r"hq\.source keys"):
        _ = GGUFFile(path).identity


def neuron_set(model: ModelIdentity) -> NeuronSet:
    return NeuronSet(
        model=model, cett="sum", tokens="answer", labels="1-vs-1", intercept=0.0, neurons=()
    )


def test_neurons_of_a_checkpoint_are_read_on_a_gguf_of_the_same_norm_digest_only(whole, tmp_path):
    unknown = GGUFFile(whole).identity
    source = unknown.model_copy(update={"fingerprint": "0123456789abcdef", "name": "source"})
    path = tmp_path / "set.json"
    for first, other in ((source, unknown), (unknown, source)):
        neuron_set(first).save(path)
        assert NeuronSet.load(path, other).model == first
        for change in (
            {"norm_digest": "f" * 16},
            {"norm_digest": ""},
            {"n_layers": 4},
            {"d_ff": 64},
        ):
            with pytest.raises(HQError, match="belongs to"):
                NeuronSet.load(path, other.model_copy(update=change))
    neuron_set(source).save(path)
    with pytest.raises(
        HQError, match="fingerprint"
    ):  # two checkpoints: the norm digest is not enough
        NeuronSet.load(path, source.model_copy(update={"fingerprint": "f" * 16}))
    neuron_set(unknown).save(path)
    with pytest.raises(HQError, match="fingerprint"):  # nor for two files
        NeuronSet.load(path, unknown.model_copy(update={"fingerprint": "gguf:" + "f" * 16}))
    neuron_set(source.model_copy(update={"norm_digest": ""})).save(path)
    with pytest.raises(HQError, match="fingerprint"):
        NeuronSet.load(path, unknown.model_copy(update={"norm_digest": ""}))


# The embedded model


@pytest.mark.slow
def test_the_embedded_model_has_the_norm_digest_of_its_checkpoint(tmp_path):
    from harness.models.dequantized import checkpoint_of
    from harness.models.packaged import packaged_gguf
    from hq.backends.transformers.backend import TorchBackend
    from hq.models.checkpoint import checkpoint_identity

    path = tmp_path / "embedded.gguf"
    path.symlink_to(packaged_gguf())
    file = GGUFFile(path)
    assert (
        file.identity.norm_digest
        == checkpoint_identity(checkpoint_of(packaged_gguf())).norm_digest
        != ""
    )
    assert {row.storage for row in file.audit(kernel)} == {"q4_1"}
    assert sum(row.count for row in file.audit(kernel)) == 210
    with TorchBackend(checkpoint_of(packaged_gguf()), "fp16") as backend:
        np.testing.assert_allclose(
            file.norms.ravel(), backend.norms, rtol=1e-3
        )  # weights rounded to FP16
