"""A damaged GGUF file opens or raises an HQError; nothing else ever happens."""

import struct
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
from tests.hq import gguf_files as tiny
from tests.hq.gguf_files import overwrite

TYPE = gguf.GGMLQuantizationType


# Damage


def rejected(path: Path, message: str) -> None:
    """Assert that opening raises one sentence that names the file."""
    with pytest.raises(HQError, match=message) as error:
        GGUFFile(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize("part", range(20))
def test_a_file_cut_off_anywhere_is_rejected(part, copied):
    size = copied.stat().st_size
    header = GGUFFile(copied).header.data_start
    ends = [0, 3, 4, 7, 12, 23, 24, 30, *(header * k // 7 for k in range(1, 8)), header + 1]
    ends += [size // 3, size // 2, size - 100, size - 1]
    with open(copied, "r+b") as file:
        file.truncate(ends[part])
    rejected(copied, r"tiny\.gguf is cut off: copy it again\.$")


def test_a_file_that_is_not_there_and_a_folder_are_rejected(tmp_path):
    rejected(tmp_path / "none.gguf", "cannot be read")
    rejected(tmp_path, "cannot be read")


def after(name: str) -> Callable[[bytes], int]:
    """Position after a string: of a value's type, or of a tensor's number of dimensions."""

    def position(data: bytes) -> int:
        stored = struct.pack("<Q", len(name)) + name.encode()
        assert data.count(stored) == 1
        return data.index(stored) + len(stored)

    return position


def of(name: str) -> Callable[[bytes], int]:
    """Position of a string's length."""
    return lambda data: after(name)(data) - len(name) - 8


def at(position: int) -> Callable[[bytes], int]:
    return lambda _: position


def plus(position: Callable[[bytes], int], more: int) -> Callable[[bytes], int]:
    return lambda data: position(data) + more


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


COUNT = len(tiny.llama_weights())
KEYS = 1 + len(tiny.metadata())
TOKENS, EMBEDDING = after("tokenizer.ggml.tokens"), after("token_embd.weight")
DOWN = after("blk.1.ffn_down.weight")  # dimensions, two of 8 bytes, type, offset

EDITS = {
    "magic": (at(0), b"GGUX", "is not a GGUF file"),
    "another format": (at(0), b"\x80\x02}q", "is not a GGUF file"),
    "version 0": (at(4), u32(0), "big-endian"),
    "version 1": (at(4), u32(1), "GGUF version 1"),
    "version 4": (at(4), u32(4), "GGUF version 4"),
    "big-endian": (at(4), struct.pack(">I", 3), "big-endian"),
    "no tensors": (at(8), u64(0), "has no tensors"),
    "a tensor fewer": (at(8), u64(COUNT - 1), "lacks the tensor"),
    "a tensor more": (at(8), u64(COUNT + 1), "damaged|cut off"),
    "too many tensors": (at(8), u64(1 << 63), "damaged|cut off"),
    "no metadata": (at(16), u64(0), "damaged"),
    "a key fewer": (at(16), u64(KEYS - 1), "damaged"),
    "a key more": (at(16), u64(KEYS + 1), "damaged|cut off"),
    "too many keys": (at(16), u64(1 << 62), "declares 4611686018427387904"),
    "key length": (at(24), u64(1 << 62), "cut off"),
    "key length overflows": (at(24), u64((1 << 64) - 8), "cut off"),
    "empty key": (at(24), u64(0), "empty"),
    "key is not UTF-8": (at(32), b"\xff", "not UTF-8"),
    "another architecture": (plus(after("general.architecture"), 12), b"lbama", "'lbama'"),
    "another key": (plus(of("general.architecture"), 8), b"h", "lacks general.architecture"),
    "duplicated key": (plus(of("tokenizer.ggml.bos_token_id"), 23), b"e", "duplicated"),
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
    "type whose block is longer than a row": (
        plus(DOWN, 20),
        u32(12),
        "not a multiple of a block of Q4_K",
    ),
    "type of another size": (plus(DOWN, 20), u32(8), "starts at"),
    "type of integers": (plus(DOWN, 20), u32(25), "type I16"),
    "offset off by one": (plus(DOWN, 24), u64(1), "starts at"),
    "offset of another tensor": (plus(DOWN, 24), u64(0), "starts at"),
    "offset beyond the file": (plus(DOWN, 24), u64(1 << 63), "starts at"),
    "embedding of fewer rows": (plus(EMBEDDING, 12), u64(96), "starts at"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_damaged_header_is_rejected(name, copied):
    position, content, message = EDITS[name]
    overwrite(copied, position(copied.read_bytes()), content)
    rejected(copied, message)


HYPERPARAMETERS = {
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


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, values in HYPERPARAMETERS.items() for v in values]
)
def test_a_hyperparameter_that_cannot_be_is_rejected(key, value, tmp_path):
    path = tiny.write(tmp_path / "a.gguf", changes={f"llama.{key}": value})
    rejected(path, r"cannot be|shape|lacks|mixture of experts|has a tensor")


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
def test_a_vocabulary_that_does_not_fit_is_rejected(key, value, tmp_path):
    path = tiny.write(tmp_path / "a.gguf", changes={f"tokenizer.ggml.{key}": value})
    rejected(path, "tokenizer|vocabulary|tokens|vocab_size")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.alignment": 0}, "not a power of two"),
        ({"general.alignment": 24}, "not a power of two"),
        ({"general.alignment": "32"}, "not a power of two"),
        ({"general.alignment": 1 << 20}, "starts at|cut off"),
        ({"general.type": "adapter"}, "'adapter', not a model"),
    ],
)
def test_what_is_no_model_is_rejected(changes, message, tmp_path):
    rejected(tiny.write(tmp_path / "a.gguf", changes=changes), message)


def test_an_architecture_that_hq_does_not_know_is_rejected(tmp_path):
    path = tiny.write(tmp_path / "a.gguf", architecture="bloom")
    rejected(path, r"'bloom', which hq does not know: use one of gemma2.*or the checkpoint that")


@pytest.mark.parametrize("name", ["outpvt.weight", "blk.3.ffn_up.weight", "blk.0.ffn_norm.bias"])
def test_a_tensor_too_many_is_rejected(name, tmp_path):
    weights = tiny.llama_weights() | {name: np.zeros(64, dtype=np.float32)}
    rejected(tiny.write(tmp_path / "a.gguf", weights=weights), f"has a tensor '{name}'")


@pytest.mark.parametrize("name", [n for n in tiny.llama_weights() if "blk.0" not in n])
def test_a_tensor_of_another_shape_is_rejected(name, tmp_path):
    weights = tiny.llama_weights()
    weights[name] = np.concatenate([weights[name], weights[name]])
    rejected(tiny.write(tmp_path / "a.gguf", weights=weights), "in the shape")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "tiny.gguf"


def opens_or_is_rejected(path: Path) -> None:
    """Opening raises nothing but an HQError, and takes little memory."""
    tracemalloc.start()
    try:
        message = message_of(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert message is None or (str(path) in message and "\n" not in message)
    assert peak < 32 << 20


def message_of(path: Path) -> str | None:
    try:
        file = GGUFFile(path)
        assert file.norms.shape == (file.n_layers, file.d_ff)
        assert file.identity.n_layers == file.n_layers
        assert file.audit(lambda layer, kind: kind.activations)
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
    opens_or_is_rejected(scratch)


@ANYTHING
@given(
    share=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from([0, 1, 8, 1 << 22, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]),
)
def test_any_length_in_the_header_may_be_absurd(whole, scratch, share, value):
    data = bytearray(whole.read_bytes())
    position = int(share * GGUFFile(whole).header.data_start)
    data[position : position + 8] = u64(value)
    scratch.write_bytes(data)
    opens_or_is_rejected(scratch)


@ANYTHING
@given(content=st.binary(max_size=200), magic=st.booleans())
def test_any_bytes_may_be_a_file(scratch, content, magic):
    scratch.write_bytes((b"GGUF\x03\0\0\0" if magic else b"") + content)
    opens_or_is_rejected(scratch)
