"""The tokenizer of a GGUF file as transformers has it: the one that was written, id for id."""

import pytest
import transformers

from hq.checkpoint import identity
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.read_tokenizer import tokenizer_of
from hq.gguf.write import write
from tests import tiny, tiny_tokenizers

SENTENCEPIECE = {"llama": "prepend", "gemma3_text": "never"}


def there_and_back(family, theirs, tmp_path):
    """The tokenizer, and what is read of the GGUF file that it was written to."""
    config = tiny.FAMILIES[family]()
    config.vocab_size = len(theirs)
    folder = tmp_path / "checkpoint"
    transformers.AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    theirs.chat_template = "{{ messages[0].content }}"
    theirs.save_pretrained(folder)
    write(folder, tmp_path / "model.gguf", "f32", identity(folder))
    return theirs, tokenizer_of(GGUFFile(tmp_path / "model.gguf"))


def require_same(theirs, ours):
    texts = tiny_tokenizers.texts(300)
    assert [ours(text).input_ids for text in texts] == [theirs(text).input_ids for text in texts]
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("pre", tiny_tokenizers.BYTE_LEVEL)
def test_the_way_back_is_the_way_there(pre, tmp_path):
    theirs = tiny_tokenizers.byte_level(tiny.VOCABULARY, pre, every_byte=False)
    require_same(*there_and_back("llama", theirs, tmp_path))


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_the_way_back_of_sentencepiece(family, tmp_path):
    theirs = tiny_tokenizers.sentencepiece(700, SENTENCEPIECE[family])
    theirs, ours = there_and_back(family, theirs, tmp_path)
    require_same(theirs, ours)
    assert ours.decode(ours("it's 5 Ω", add_special_tokens=False).input_ids) == "it's 5 Ω"


def test_a_file_without_merges_is_refused(gguf, monkeypatch):
    file = GGUFFile(gguf("llama"))
    monkeypatch.delitem(file.header.metadata, "tokenizer.ggml.merges")
    with pytest.raises(HQError, match="has no merges"):
        tokenizer_of(file)


def test_another_kind_of_tokenizer_is_refused(gguf, monkeypatch):
    file = GGUFFile(gguf("llama"))
    monkeypatch.setitem(file.header.metadata, "tokenizer.ggml.model", "t5")
    with pytest.raises(HQError, match="of kind 't5', and hq reads gpt2 and llama"):
        tokenizer_of(file)


def test_a_file_that_begins_texts_with_no_token_is_refused(gguf, monkeypatch):
    file = GGUFFile(gguf("llama"))
    monkeypatch.setitem(file.header.metadata, "tokenizer.ggml.add_bos_token", True)
    monkeypatch.delitem(file.header.metadata, "tokenizer.ggml.bos_token_id")
    with pytest.raises(HQError, match="names no first token"):
        tokenizer_of(file)
