"""Messages about a tokenizer that cannot be loaded name what is missing."""

import importlib.util
from pathlib import Path

import pytest

from hq.errors import HQError
from hq.models import tokenizer
from tests import tiny, tiny_tokenizers

# The first bytes of a SentencePiece model: one token, <unk>.
SENTENCEPIECE = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without a tokenizer."""
    return tiny.save("llama", tmp_path / "model")


def test_a_sentencepiece_file_alone_needs_the_packages_that_read_it(folder: Path):
    if importlib.util.find_spec("sentencepiece") is not None:
        pytest.skip("sentencepiece is installed")
    (folder / "tokenizer.model").write_bytes(SENTENCEPIECE)
    with pytest.raises(HQError, match=r"pip install sentencepiece protobuf.*tokenizer\.json") as e:
        tokenizer.load_tokenizer(folder)
    assert "tiktoken" not in str(e.value)


def test_a_tiktoken_file_of_the_same_name_is_not_taken_for_one(folder: Path):
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(HQError, match="tiktoken"):
        tokenizer.load_tokenizer(folder)


def test_a_whole_tokenizer_is_loaded(folder: Path):
    tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(SENTENCEPIECE)
    assert tokenizer.load_tokenizer(folder)("a").input_ids
