"""GGUF files: what a whole one says, and that no damaged one opens or fails in any other way."""

import shutil
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.norms import column_norms
from hq.gguf.types import TYPES, dequantized
from hq.neurons import ModelIdentity, NeuronSet
from tests.hq import gguf_files as tiny

TYPE = gguf.GGMLQuantizationType


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in F16; read only."""
    return tiny.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """The same, to damage."""
    return Path(shutil.copy(whole, tmp_path / "tiny.gguf"))


# What a whole file says


def test_a_whole_file_tells_its_shape(whole):
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
        mine = file.tensors[tensor.name]
        assert (mine.offset, mine.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert (mine.shape, mine.type.name) == (tuple(tensor.shape), tensor.tensor_type.name)
        assert file.rows(tensor.name).tobytes() == tensor.data.tobytes()
    for key in file.metadata:
        value, other = file.metadata[key], reader.fields[key].contents()
        assert (list(value) if isinstance(value, tuple | np.ndarray) else value) == other
    assert file.weight_bytes() == sum(tensor.n_bytes for tensor in reader.tensors)


def test_the_types_are_those_of_the_package():
    ours = {kind.number: (kind.name, kind.weights, kind.nbytes) for kind in TYPES.values()}
    theirs = {k.value: (k.name, *gguf.GGML_QUANT_SIZES[k]) for k in gguf.GGML_QUANT_SIZES}
    assert {number: theirs[number] for number in ours} == ours
    assert set(theirs) <= set(ours), "gguf knows a new type: add it to hq/gguf/types.py"


def test_version_2_opens(copied):
    overwrite(copied, 4, struct.pack("<I", 2))
    assert GGUFFile(copied).header.version == 2


@pytest.mark.parametrize("alignment", [1, 8, 4096])
def test_another_alignment_opens(alignment, whole, tmp_path):
    path = tiny.write(tmp_path / "a.gguf", "F16", alignment=alignment)
    assert GGUFFile(path).header.alignment == alignment
    np.testing.assert_array_equal(GGUFFile(path).norms, GGUFFile(whole).norms)


def test_sizes_given_layer_by_layer_open_when_they_are_the_same(tmp_path):
    said = {"llama.attention.head_count": [4] * 3, "llama.feed_forward_length": [128] * 3}
    assert GGUFFile(tiny.write(tmp_path / "a.gguf", said=said)).d_ff == tiny.D_FF


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
    at_once = column_norms(weights.view(np.uint8), TYPES[0])
    monkeypatch.setattr("hq.gguf.norms._ROWS", 7)
    np.testing.assert_allclose(column_norms(weights.view(np.uint8), TYPES[0]), at_once, rtol=1e-7)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = tiny.llama_weights()
    weights["blk.1.ffn_down.weight"][3, 5] = np.nan
    path = tiny.write(tmp_path / "a.gguf", "F32", weights=weights)
    with pytest.raises(HQError, match=r"blk\.1\.ffn_down\.weight holds .* copy it again"):
        _ = GGUFFile(path).norms
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_type_that_the_package_cannot_read_is_named():
    with pytest.raises(HQError, match="does not read Q8_K: upgrade it"):
        dequantized(np.zeros((1, 292), dtype=np.uint8), TYPES[15])


def test_what_each_tensor_got_is_counted(tmp_path):
    file = GGUFFile(tiny.write(tmp_path / "a.gguf", "Q4_0"))
    rows = [(row.module, row.count, row.storage) for row in file.audit("int8")]
    ffn = [(kind, tiny.LAYERS, "q4_0") for kind in ("ffn_down", "ffn_gate", "ffn_up")]
    assert rows == [("attention", 4 * tiny.LAYERS, "q4_0"), *ffn]
    assert {(row.bits_per_weight, row.compute) for row in file.audit("int8")} == {(4.5, "int8")}


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
    assert len(file.identity.kin) == 16
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
    (row,) = GGUFFile(tiny.write(tmp_path / "a.gguf", weights=weights)).audit("float32")
    assert row.count == 5 * tiny.LAYERS


# Identity


def test_the_identity_of_a_file_of_unknown_origin_is_its_bytes(whole, copied, tmp_path):
    found = GGUFFile(copied).identity
    assert found == GGUFFile(whole).identity
    assert found.name == "tiny llama"
    assert found.fingerprint.startswith("gguf:")
    assert len(found.fingerprint) == 21
    assert (found.architecture, found.n_layers, found.d_ff) == ("llama", 3, 128)
    overwrite(copied, copied.stat().st_size - 1, b"\x01")
    assert GGUFFile(copied).identity.fingerprint != found.fingerprint
    assert GGUFFile(copied).identity.kin == found.kin
    other = GGUFFile(tiny.write(tmp_path / "other.gguf", seed=1)).identity
    assert other.kin != found.kin


def test_metadata_do_not_change_the_fingerprint_and_the_stem_names_a_nameless_file(tmp_path, whole):
    path = tiny.write(tmp_path / "nameless.gguf", said={"general.name": None})
    found = GGUFFile(path).identity
    assert found.name == "nameless"
    assert found.fingerprint == GGUFFile(whole).identity.fingerprint


def test_quantizing_keeps_the_kin(tmp_path, whole):
    quantized = GGUFFile(tiny.write(tmp_path / "a.gguf", "Q4_0")).identity
    assert quantized.kin == GGUFFile(whole).identity.kin
    assert quantized.fingerprint != GGUFFile(whole).identity.fingerprint


SOURCE = {
    "hq.source.name": "the source",
    "hq.source.fingerprint": "0123456789abcdef",
    "hq.source.architecture": "mistral",
    "hq.source.kin": "fedcba9876543210",
}


def test_a_file_that_names_its_source_has_its_identity(tmp_path):
    found = GGUFFile(tiny.write(tmp_path / "a.gguf", said=SOURCE)).identity
    assert found == ModelIdentity(
        name="the source",
        fingerprint="0123456789abcdef",
        architecture="mistral",
        n_layers=tiny.LAYERS,
        d_ff=tiny.D_FF,
        kin="fedcba9876543210",
    )
    without = tiny.write(tmp_path / "b.gguf", said=SOURCE | {"hq.source.kin": None})
    assert GGUFFile(without).identity == found.model_copy(update={"kin": ""})


@pytest.mark.parametrize("key", ["name", "fingerprint", "architecture", "kin"])
def test_a_source_that_is_no_text_is_refused(key, tmp_path):
    path = tiny.write(tmp_path / "a.gguf", said=SOURCE | {f"hq.source.{key}": 3})
    with pytest.raises(HQError, match=r"hq\.source keys"):
        _ = GGUFFile(path).identity


def neuron_set(model: ModelIdentity) -> NeuronSet:
    return NeuronSet(
        model=model, cett="sum", tokens="answer", labels="1-vs-1", intercept=0.0, neurons=()
    )


def test_neurons_of_a_checkpoint_are_read_on_a_gguf_of_the_same_kin_and_no_other(whole, tmp_path):
    unknown = GGUFFile(whole).identity
    source = unknown.model_copy(update={"fingerprint": "0123456789abcdef", "name": "source"})
    path = tmp_path / "set.json"
    for mine, other in ((source, unknown), (unknown, source)):
        neuron_set(mine).save(path)
        assert NeuronSet.load(path, other).model == mine
        for change in ({"kin": "f" * 16}, {"kin": ""}, {"n_layers": 4}, {"d_ff": 64}):
            with pytest.raises(HQError, match="belongs to"):
                NeuronSet.load(path, other.model_copy(update=change))
    neuron_set(source).save(path)
    with pytest.raises(HQError, match="fingerprint"):  # two checkpoints: kin is not enough
        NeuronSet.load(path, source.model_copy(update={"fingerprint": "f" * 16}))
    neuron_set(unknown).save(path)
    with pytest.raises(HQError, match="fingerprint"):  # nor is it for two files
        NeuronSet.load(path, unknown.model_copy(update={"fingerprint": "gguf:" + "f" * 16}))
    neuron_set(source.model_copy(update={"kin": ""})).save(path)
    with pytest.raises(HQError, match="fingerprint"):
        NeuronSet.load(path, unknown.model_copy(update={"kin": ""}))


# Norms that are kept


def beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.hq.safetensors")


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Grows by one a layer whose norms are computed."""
    calls: list[int] = []

    def counted(*arguments):
        calls.append(1)
        return column_norms(*arguments)

    monkeypatch.setattr("hq.gguf.file.column_norms", counted)
    return calls


def test_norms_are_kept_beside_the_model(copied, computed):
    first = GGUFFile(copied).norms
    assert sorted(p.name for p in copied.parent.iterdir()) == sorted(
        [copied.name, beside(copied).name]
    )
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == tiny.LAYERS


def test_a_changed_file_is_read_anew(copied, computed):
    first = GGUFFile(copied).norms
    overwrite(copied, copied.stat().st_size - 1, b"\x01")
    assert not np.array_equal(GGUFFile(copied).norms, first)
    tiny.write(copied, "Q8_0")
    assert not np.array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 3 * tiny.LAYERS


def test_norms_of_another_file_are_not_read(copied, tmp_path, computed):
    other = tiny.write(tmp_path / "other.gguf", seed=1)
    shutil.copy(beside_of(other), beside(copied))
    expected = GGUFFile(copied).norms
    beside(copied).unlink()
    np.testing.assert_array_equal(GGUFFile(copied).norms, expected)


def beside_of(path: Path) -> Path:
    _ = GGUFFile(path).norms
    return beside(path)


@pytest.mark.parametrize("place", [0, 7, 8, 20, 60, 130, 400, -1])
def test_damaged_norms_are_computed_again(place, copied, computed):
    first = GGUFFile(copied).norms
    kept = bytearray(beside(copied).read_bytes())
    kept[place] ^= 0x10
    beside(copied).write_bytes(kept)
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 2 * tiny.LAYERS
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)
    assert len(computed) == 2 * tiny.LAYERS  # and were kept again


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x02\0\0\0\0\0\0\0{}", struct.pack("<Q", 1 << 60)]
)
def test_norms_that_are_no_file_of_norms_are_computed_again(content, copied):
    first = GGUFFile(copied).norms
    beside(copied).write_bytes(content)
    np.testing.assert_array_equal(GGUFFile(copied).norms, first)


def test_a_folder_in_the_place_of_the_norms_only_costs_time(copied, computed):
    beside(copied).mkdir()
    for _ in range(2):
        assert GGUFFile(copied).norms.shape == (tiny.LAYERS, tiny.D_FF)
    assert len(computed) == 2 * tiny.LAYERS
    assert len(list(copied.parent.iterdir())) == 2


def test_a_folder_that_cannot_be_written_only_costs_time(copied, monkeypatch, computed):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hq.gguf.norms.draft", refuse)
    for _ in range(2):
        assert GGUFFile(copied).norms.shape == (tiny.LAYERS, tiny.D_FF)
    assert len(computed) == 2 * tiny.LAYERS


# Damage


def overwrite(path: Path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


def refused(path: Path, message: str) -> None:
    """One sentence that names the file, what is wrong with it, and the fix."""
    with pytest.raises(HQError, match=message) as error:
        GGUFFile(path)
    said = str(error.value)
    assert str(path) in said
    assert "\n" not in said
    assert said.endswith(".")


@pytest.mark.parametrize("part", range(20))
def test_a_file_cut_off_anywhere_is_refused(part, copied):
    size = copied.stat().st_size
    header = GGUFFile(copied).header.data_start
    ends = [0, 3, 4, 7, 12, 23, 24, 30, *(header * k // 7 for k in range(1, 8)), header + 1]
    ends += [size // 3, size // 2, size - 100, size - 1]
    with open(copied, "r+b") as file:
        file.truncate(ends[part])
    refused(copied, r"tiny\.gguf is cut off: copy it again\.$")


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "none.gguf", "cannot be read")
    refused(tmp_path, "cannot be read")


def after(name: str) -> Callable[[bytes], int]:
    """Where the file goes on after a string: a value's type, or a tensor's dimensions."""

    def place(data: bytes) -> int:
        stored = struct.pack("<Q", len(name)) + name.encode()
        assert data.count(stored) == 1
        return data.index(stored) + len(stored)

    return place


def of(name: str) -> Callable[[bytes], int]:
    """Where a string's length stands."""
    return lambda data: after(name)(data) - len(name) - 8


def at(place: int) -> Callable[[bytes], int]:
    return lambda _: place


def plus(place: Callable[[bytes], int], more: int) -> Callable[[bytes], int]:
    return lambda data: place(data) + more


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


COUNT = len(tiny.llama_weights())
KEYS = 1 + len(tiny.metadata())
TOKENS, EMBEDDING = after("tokenizer.ggml.tokens"), after("token_embd.weight")
DOWN = after("blk.1.ffn_down.weight")  # dimensions, two of 8 bytes, type, offset

EDITS = {
    "magic": (at(0), b"GGUX", "is no GGUF file"),
    "another format": (at(0), b"\x80\x02}q", "is no GGUF file"),
    "version 0": (at(4), u32(0), "big-endian"),
    "version 1": (at(4), u32(1), "GGUF version 1"),
    "version 4": (at(4), u32(4), "GGUF version 4"),
    "big-endian": (at(4), struct.pack(">I", 3), "big-endian"),
    "no tensors": (at(8), u64(0), "holds no tensors"),
    "a tensor fewer": (at(8), u64(COUNT - 1), "lacks the tensor"),
    "a tensor more": (at(8), u64(COUNT + 1), "damaged|cut off"),
    "too many tensors": (at(8), u64(1 << 63), "damaged|cut off"),
    "no metadata": (at(16), u64(0), "damaged"),
    "a key fewer": (at(16), u64(KEYS - 1), "damaged"),
    "a key more": (at(16), u64(KEYS + 1), "damaged|cut off"),
    "too many keys": (at(16), u64(1 << 62), "counts 4611686018427387904"),
    "key length": (at(24), u64(1 << 62), "cut off"),
    "key length overflows": (at(24), u64((1 << 64) - 8), "cut off"),
    "empty key": (at(24), u64(0), "empty"),
    "key is not UTF-8": (at(32), b"\xff", "not UTF-8"),
    "another architecture": (plus(after("general.architecture"), 12), b"lbama", "'lbama'"),
    "another key": (plus(of("general.architecture"), 8), b"h", "lacks general.architecture"),
    "key twice": (plus(of("tokenizer.ggml.bos_token_id"), 23), b"e", "twice"),
    "value type unknown": (after("llama.block_count"), u32(13), "unknown type 13"),
    "value type negative": (after("llama.block_count"), u32(0xFFFFFFFF), "unknown type"),
    "value type float": (after("llama.block_count"), u32(6), "block_count cannot be"),
    "value type bool": (after("llama.block_count"), u32(7), "damaged|cut off"),
    "value type string": (after("llama.block_count"), u32(8), "damaged|cut off"),
    "string length": (plus(after("general.name"), 4), u64(1 << 40), "cut off"),
    "array of arrays": (plus(TOKENS, 4), u32(9), "unknown type 9"),
    "array of unknown": (plus(TOKENS, 4), u32(99), "unknown type 99"),
    "array of numbers": (plus(TOKENS, 4), u32(4), "damaged|cut off"),
    "array length": (plus(TOKENS, 8), u64(1 << 60), "has 1152921504606846976 items"),
    "array longer than the file": (plus(TOKENS, 8), u64(1 << 21), "cut off|damaged"),
    "array shorter": (plus(TOKENS, 8), u64(tiny.VOCABULARY - 1), "damaged|cut off"),
    "token is not UTF-8": (plus(TOKENS, 24), b"\xc3", "not UTF-8"),
    "token length": (plus(TOKENS, 16), u64(1 << 33), "cut off"),
    "numbers longer": (
        plus(after("tokenizer.ggml.token_type"), 8),
        u64(1 << 22),
        "cut off",
    ),
    "tensor name length": (of("blk.1.ffn_down.weight"), u64(1 << 50), "cut off"),
    "tensor name empty": (of("blk.1.ffn_down.weight"), u64(0), "name of 0"),
    "tensor name longer": (of("blk.1.ffn_down.weight"), u64(80), "damaged"),
    "tensor twice": (plus(of("blk.1.attn_k.weight"), 19), b"q", "damaged"),
    "tensor misspelt": (plus(of("blk.1.ffn_down.weight"), 8), b"B", "lacks the tensor"),
    "no dimensions": (DOWN, u32(0), "0 dimensions"),
    "five dimensions": (DOWN, u32(5), "5 dimensions"),
    "too many dimensions": (DOWN, u32(1 << 31), "dimensions"),
    "one dimension": (DOWN, u32(1), "damaged"),
    "dimension of 0": (plus(DOWN, 4), u64(0), "shape"),
    "dimension too large": (plus(DOWN, 4), u64(1 << 62), "shape"),
    "dimension beyond the file": (plus(DOWN, 4), u64(1 << 40), "cut off"),
    "dimension smaller": (plus(DOWN, 4), u64(64), "starts at"),
    "dimensions exchanged": (plus(DOWN, 4), u64(64) + u64(128), "shape"),
    "type unknown": (plus(DOWN, 20), u32(31), "unknown type 31"),
    "type beyond all": (plus(DOWN, 20), u32(1 << 31), "unknown type"),
    "type of no whole blocks": (plus(DOWN, 20), u32(12), "no whole blocks of Q4_K"),
    "type of another size": (plus(DOWN, 20), u32(8), "starts at"),
    "type of integers": (plus(DOWN, 20), u32(25), "type I16"),
    "offset off by one": (plus(DOWN, 24), u64(1), "starts at"),
    "offset of another tensor": (plus(DOWN, 24), u64(0), "starts at"),
    "offset beyond the file": (plus(DOWN, 24), u64(1 << 63), "starts at"),
    "embedding of fewer rows": (plus(EMBEDDING, 12), u64(96), "starts at"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_damaged_header_is_refused(name, copied):
    place, content, message = EDITS[name]
    overwrite(copied, place(copied.read_bytes()), content)
    refused(copied, message)


SAID = {
    "block_count": [None, 2, 4, 1 << 31, "3", 3.0, True, [1, 1, 1]],
    "context_length": [None, 0],
    "embedding_length": [None, 0, 32, 128, -1.0],
    "feed_forward_length": [None, 0, 64, [128, 128, 64], [128, 128], [0.5] * 3],
    "attention.head_count": [None, 0, 3, 8, 128, [4, 4, 2]],
    "attention.head_count_kv": [0, 3, 4, 8, "2"],
    "attention.key_length": [0, 8, 32],
    "attention.value_length": [0, 8],
    "attention.layer_norm_rms_epsilon": [None, 0.0, -1e-5, 2.0, float("nan"), 1],
    "rope.dimension_count": [0, 15, 32],
    "rope.freq_base": [float("inf"), float("nan")],
    "rope.scaling.factor": [float("nan")],
    "vocab_size": [0, 127],
    "expert_count": [8],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in SAID.items() for v in values])
def test_a_hyperparameter_that_cannot_be_is_refused(key, value, tmp_path):
    path = tiny.write(tmp_path / "a.gguf", said={f"llama.{key}": value})
    refused(path, r"cannot be|shape|lacks|mixture of experts|has a tensor")


VOCABULARY = {
    "tokens": [None, "tokens", [1] * 128, tiny.TOKENS[:-1], [*tiny.TOKENS, "one more"]],
    "token_type": [[1] * 127, [1] * 129, ["1"] * 128, [0.5] * 128, 1],
    "scores": [[0.5] * 127, [1] * 128, [float("nan")] * 128, "none"],
    "merges": [[1, 2], "a b"],
    "model": [None, 3],
    "bos_token_id": [128, 0xFFFFFFFF, 1.0, "1", True],
    "eos_token_id": [128],
    "unknown_token_id": [128],
    "padding_token_id": [129],
    "eot_token_id": [1 << 20],
}


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, values in VOCABULARY.items() for v in values]
)
def test_a_vocabulary_that_does_not_fit_is_refused(key, value, tmp_path):
    path = tiny.write(tmp_path / "a.gguf", said={f"tokenizer.ggml.{key}": value})
    refused(path, "tokenizer|vocabulary|tokens|vocab_size")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"general.alignment": 0}, "no power of two"),
        ({"general.alignment": 24}, "no power of two"),
        ({"general.alignment": "32"}, "no power of two"),
        ({"general.alignment": 1 << 20}, "starts at|cut off"),
        ({"general.type": "adapter"}, "'adapter', not a model"),
        ({"split.count": 2}, "one part of a split model"),
    ],
)
def test_what_is_no_model_is_refused(said, message, tmp_path):
    refused(tiny.write(tmp_path / "a.gguf", said=said), message)


def test_an_architecture_that_hq_does_not_know_is_refused(tmp_path):
    path = tiny.write(tmp_path / "a.gguf", architecture="bloom")
    refused(path, r"'bloom', which hq does not know: use one of gemma2.*layout\.py")


@pytest.mark.parametrize("name", ["outpvt.weight", "blk.3.ffn_up.weight", "blk.0.ffn_norm.bias"])
def test_a_tensor_too_many_is_refused(name, tmp_path):
    weights = tiny.llama_weights() | {name: np.zeros(64, dtype=np.float32)}
    refused(tiny.write(tmp_path / "a.gguf", weights=weights), f"has a tensor '{name}'")


@pytest.mark.parametrize("name", [n for n in tiny.llama_weights() if "blk.0" not in n])
def test_a_tensor_of_another_shape_is_refused(name, tmp_path):
    weights = tiny.llama_weights()
    weights[name] = np.concatenate([weights[name], weights[name]])
    refused(tiny.write(tmp_path / "a.gguf", weights=weights), "in the shape")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "tiny.gguf"


def opens_or_is_refused(path: Path) -> None:
    """Whatever the bytes are, nothing but an HQError; and never more memory than a few files'."""
    tracemalloc.start()
    try:
        said = complaint(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert said is None or (str(path) in said and "\n" not in said)
    assert peak < 32 << 20


def complaint(path: Path) -> str | None:
    try:
        file = GGUFFile(path)
        assert file.norms.shape == (file.n_layers, file.d_ff)
        assert file.identity.n_layers == file.n_layers
        assert file.audit("float32")
        assert file.audit("")
    except HQError as error:
        return str(error)
    return None


ANYTHING = settings(
    deadline=2000, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ANYTHING
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_byte_of_the_header_may_be_flipped(whole, scratch, share, flip):
    data = bytearray(whole.read_bytes())
    data[int(share * GGUFFile(whole).header.data_start)] ^= flip
    scratch.write_bytes(data)
    opens_or_is_refused(scratch)


@ANYTHING
@given(
    share=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from([0, 1, 8, 1 << 22, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]),
)
def test_any_length_in_the_header_may_be_absurd(whole, scratch, share, value):
    data = bytearray(whole.read_bytes())
    place = int(share * GGUFFile(whole).header.data_start)
    data[place : place + 8] = u64(value)
    scratch.write_bytes(data)
    opens_or_is_refused(scratch)


@ANYTHING
@given(content=st.binary(max_size=200), magic=st.booleans())
def test_any_bytes_may_be_a_file(scratch, content, magic):
    scratch.write_bytes((b"GGUF\x03\0\0\0" if magic else b"") + content)
    opens_or_is_refused(scratch)


# The embedded model


@pytest.mark.slow
def test_the_embedded_model_is_akin_to_its_dequantized_checkpoint(tmp_path):
    from harness.dequantized import checkpoint_of
    from harness.embedded import packaged_gguf
    from hq.backends.torch import TorchBackend
    from hq.checkpoint import identity

    path = tmp_path / "embedded.gguf"
    path.symlink_to(packaged_gguf())
    file = GGUFFile(path)
    assert file.identity.kin == identity(checkpoint_of(packaged_gguf())).kin != ""
    assert {row.storage for row in file.audit("int8")} == {"q4_1"}
    assert sum(row.count for row in file.audit("int8")) == 210
    with TorchBackend(checkpoint_of(packaged_gguf()), "fp16") as backend:
        np.testing.assert_allclose(file.norms, backend.norms, rtol=1e-3)  # weights rounded to FP16
