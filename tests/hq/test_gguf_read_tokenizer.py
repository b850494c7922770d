"""The tokenizer of a GGUF file as transformers has it: the one that was written, id for id."""

import pytest

from hq.checkpoint import identity
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.read_tokenizer import byte_level_tokenizer
from hq.gguf.write import write
from tests import tiny, tiny_tokenizers


@pytest.mark.parametrize("pre", tiny_tokenizers.BYTE_LEVEL)
def test_the_way_back_is_the_way_there(pre, tmp_path):
    folder = tiny.save("llama", tmp_path / "checkpoint")
    theirs = tiny_tokenizers.byte_level(tiny.VOCABULARY, pre, every_byte=False)
    theirs.chat_template = "{{ messages[0].content }}"
    theirs.save_pretrained(folder)
    write(folder, tmp_path / "model.gguf", "f32", identity(folder))
    ours = byte_level_tokenizer(GGUFFile(tmp_path / "model.gguf"))
    texts = tiny_tokenizers.texts(300)
    assert [ours(text).input_ids for text in texts] == [theirs(text).input_ids for text in texts]
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_a_file_without_merges_is_refused(gguf, monkeypatch):
    file = GGUFFile(gguf("llama"))
    monkeypatch.delitem(file.header.metadata, "tokenizer.ggml.merges")
    with pytest.raises(HQError, match="has no merges"):
        byte_level_tokenizer(file)
