"""Every quantization writes a file that loads, names its source, and is close to the original."""

import sys
from pathlib import Path

import numpy as np
import pytest
import transformers as hf

from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from tests.hq.gguf_checkpoints import keys, save, shape

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

from hq.gguf.quantize import QUANTIZATIONS, quantize  # noqa: E402
from hq.gguf.write import write_gguf  # noqa: E402
from hq.llamacpp.library import load_library  # noqa: E402
from tests.llamacpp import LlamaCpp  # noqa: E402

# The type of the up projection, whose rows are multiples of a block of 256, and the minimum
# correlation of logits with the original's; random weights lose more than trained ones.
EXPECTED = {
    "q8_0": ("Q8_0", 0.99),
    "q6_k": ("Q6_K", 0.95),
    "q5_k_m": ("Q5_K", 0.9),
    "q4_k_m": ("Q4_K", 0.75),
    "q4_0": ("Q4_0", 0.7),
    "iq4_nl": ("IQ4_NL", 0.7),
    "q3_k_m": ("Q3_K", 0.5),
    "q2_k": ("Q2_K", 0.2),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    config = hf.LlamaConfig(**shape(hidden_size=256, intermediate_size=512, num_hidden_layers=2))
    checkpoint = save(folder / "model", config)
    write_gguf(checkpoint, folder / "model.gguf", "f16", checkpoint_identity(checkpoint))
    return folder / "model.gguf"


def test_every_kind_is_tried() -> None:
    assert set(QUANTIZATIONS) == set(EXPECTED)


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_quantized_file_is_complete(kind: str, original: Path, tmp_path: Path) -> None:
    into = tmp_path / "new" / f"{kind}.gguf"
    quantize(original, into, kind, threads=1)
    assert [path.name for path in into.parent.iterdir()] == [into.name]
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(into).tensors}
    assert types["blk.0.ffn_up.weight"] == EXPECTED[kind][0]
    assert types["output_norm.weight"] == "F32"
    before, after = keys(original), keys(into)
    assert {k: v for k, v in after.items() if k.startswith(("hq.", "tokenizer."))} == {
        k: v for k, v in before.items() if k.startswith(("hq.", "tokenizer."))
    }
    assert before["hq.source.fingerprint"]
    ids = list(range(3, 40))
    with LlamaCpp(original) as exact, LlamaCpp(into) as rounded:
        right, near = exact.logits(ids), rounded.logits(ids)
    assert EXPECTED[kind][1] < np.corrcoef(near.ravel(), right.ravel())[0, 1] < 1


def test_an_unknown_kind_is_named(original: Path, tmp_path: Path) -> None:
    with pytest.raises(HQError, match="did you mean 'q4_k_m'"):
        quantize(original, tmp_path / "x.gguf", "q4km")


def test_a_failure_leaves_nothing_behind(original: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(original.read_bytes()[:-1000])
    quantize(original, tmp_path / "old.gguf", "q4_0", threads=1)
    old = (tmp_path / "old.gguf").read_bytes()
    for source in (cut, tmp_path / "old.gguf", tmp_path / "missing.gguf"):
        with pytest.raises(HQError, match=f"{source.name} cannot be quantized to q8_0: .+"):
            quantize(source, tmp_path / "old.gguf", "q8_0", threads=1)
        assert (tmp_path / "old.gguf").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "old.gguf"]


def test_a_missing_llama_cpp_is_named(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hq.gguf.quantize.load_library", load_library.__wrapped__
    )  # the cache knows it
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(HQError, match=r"pip install 'hq\[llama\]'"):
        quantize(original, tmp_path / "x.gguf", "q8_0")


def test_llama_cpp_is_silent(
    original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(original, tmp_path / "q8_0.gguf", "q8_0", threads=1)
    assert capfd.readouterr() == ("", "")
