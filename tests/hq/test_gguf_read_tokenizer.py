"""The tokenizer read from a GGUF file is the one that was written, id for id."""

import json
import re
import unicodedata

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.read_tokenizer import tokenizer_of
from hq.gguf.write import write_gguf
from hq.models.architectures.pre_tokenizers import PRE_TOKENIZERS
from hq.models.checkpoint import checkpoint_identity
from tests import tiny, tiny_tokenizers
from tests.hq import gguf_files

SENTENCEPIECE = {"llama": "prepend", "gemma3_text": "never"}


def written(family, original, tmp_path):
    """A GGUF file of a random model with this tokenizer."""
    config = tiny.FAMILIES[family]()
    config.vocab_size = len(original)
    folder = tmp_path / "checkpoint"
    transformers.AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    original.chat_template = "{{ messages[0].content }}"
    original.save_pretrained(folder)
    write_gguf(folder, tmp_path / "model.gguf", "f32", checkpoint_identity(folder))
    return tmp_path / "model.gguf"


@pytest.fixture
def foreign(gguf, monkeypatch):
    """Opens a file as one that llama.cpp's converter wrote, without the checkpoint's tokenizer."""

    def of(path, **changes):
        file = GGUFFile(path)
        monkeypatch.delitem(file.header.metadata, "tokenizer.huggingface.json")
        for key, value in changes.items():
            name = f"tokenizer.ggml.{key}"
            if value is None:
                monkeypatch.delitem(file.header.metadata, name, raising=False)
            else:
                monkeypatch.setitem(file.header.metadata, name, value)
        return file

    return of


def require_same(original, read):
    texts = tiny_tokenizers.texts(300)
    assert [read(text).input_ids for text in texts] == [original(text).input_ids for text in texts]
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
        assert getattr(read, name) == getattr(original, name)


@pytest.mark.parametrize("pre", tiny_tokenizers.BYTE_LEVEL)
def test_the_way_back_is_the_way_there(pre, foreign, tmp_path):
    original = tiny_tokenizers.byte_level(tiny.VOCABULARY, pre, every_byte=False)
    path = written("llama", original, tmp_path)
    require_same(original, tokenizer_of(GGUFFile(path)))
    if pre != "qwen2":  # a foreign file of that name is normalized, and this one is not
        require_same(original, tokenizer_of(foreign(path)))


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_the_way_back_of_sentencepiece(family, foreign, tmp_path):
    original = tiny_tokenizers.sentencepiece(700, SENTENCEPIECE[family])
    path = written(family, original, tmp_path)
    require_same(original, tokenizer_of(GGUFFile(path)))
    read = tokenizer_of(foreign(path))
    require_same(original, read)
    assert read.decode(read("it's 5 Ω", add_special_tokens=False).input_ids) == "it's 5 Ω"


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_spaces_before_a_text_are_the_checkpoint_s(scheme, tmp_path):
    original = tiny_tokenizers.sentencepiece(700, scheme)
    require_same(original, tokenizer_of(GGUFFile(written("llama", original, tmp_path))))


def test_texts_are_normalized_as_the_checkpoint_does(tmp_path):
    original = tiny_tokenizers.byte_level(512, "qwen2")
    original.backend_tokenizer.normalizer = normalizers.NFC()
    path = written("qwen2", original, tmp_path)
    for read in (tokenizer_of(GGUFFile(path)), original):
        assert read("Cafe\u0301").input_ids == read("Caf\u00e9").input_ids


def test_a_foreign_qwen2_is_normalized_as_it_was_trained(foreign, tmp_path):
    original = tiny_tokenizers.byte_level(512, "qwen2")
    read = tokenizer_of(foreign(written("qwen2", original, tmp_path)))
    assert read("Cafe\u0301").input_ids == read("Caf\u00e9").input_ids


@pytest.mark.parametrize(
    ("pre", "add_bos", "begins"),
    [
        ("llama-bpe", None, True),
        ("tekken", None, True),
        ("llama-bpe", False, False),
        ("gpt-2", None, False),
        ("gpt-2", True, True),
    ],
)
def test_a_text_begins_as_llama_cpp_begins_it(pre, add_bos, begins, gguf, foreign):
    file = foreign(gguf("llama"), pre=pre, add_bos_token=add_bos)
    ids = tokenizer_of(file)("e").input_ids
    assert ids == [file.metadata["tokenizer.ggml.bos_token_id"]] * begins + ids[-1:]


def test_no_text_ends_with_the_last_token(gguf, foreign):
    read = tokenizer_of(foreign(gguf("llama"), add_eos_token=True))
    assert read("e").input_ids == read("e", add_special_tokens=False).input_ids


def test_a_word_that_pads_stays_a_word(gguf, foreign):
    file = foreign(gguf("llama"))
    plain = tokenizer_of(file)
    word = plain("e").input_ids[0]
    padded = tokenizer_of(foreign(gguf("llama"), padding_token_id=word))
    text = "the model, the rest"
    assert padded(text).input_ids == plain(text).input_ids


def test_an_end_that_is_not_typed_as_one_is_whole(gguf, foreign):
    file = foreign(gguf("llama"))
    types = file.metadata["tokenizer.ggml.token_type"].copy()
    end = file.metadata["tokenizer.ggml.eos_token_id"]
    types[end] = 1
    read = tokenizer_of(foreign(gguf("llama"), token_type=types))
    assert read("a</s>").input_ids[-1] == end


def test_another_vocabulary_than_the_file_s_is_rejected(gguf, monkeypatch):
    file = GGUFFile(gguf("llama"))
    key = "tokenizer.huggingface.json"
    other = tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False, special=("<unk>", "<x>"))
    monkeypatch.setitem(file.header.metadata, key, other.backend_tokenizer.to_str())
    with pytest.raises(HQError, match=r"which differs from tokenizer\.ggml\.tokens"):
        tokenizer_of(file)
    monkeypatch.setitem(file.header.metadata, key, "{")
    with pytest.raises(HQError, match="cannot be read"):
        tokenizer_of(file)


def test_a_file_without_merges_is_rejected(gguf, foreign):
    with pytest.raises(HQError, match="has no merges"):
        tokenizer_of(foreign(gguf("llama"), merges=None))


def test_another_kind_of_tokenizer_is_rejected(gguf, foreign):
    with pytest.raises(HQError, match="of kind 't5', but hq reads gpt2 and llama"):
        tokenizer_of(foreign(gguf("llama"), model="t5"))


def test_a_file_that_begins_texts_with_no_token_is_rejected(gguf, foreign):
    with pytest.raises(HQError, match="names no BOS token"):
        tokenizer_of(foreign(gguf("llama"), add_bos_token=True, bos_token_id=None))


@pytest.fixture(scope="module")
def crossing():
    """Keys and weights of a model whose merges cross words: any other split makes other ids."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=list(tiny_tokenizers.SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(tiny_tokenizers.texts(3000, seed=1, special=()), trainer)
    vocabulary = core.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = json.loads(core.to_str())["model"]["merges"]
    weights = gguf_files.llama_weights()
    weights["token_embd.weight"] = np.zeros((len(tokens), 64), dtype=np.float32)
    special = len(tiny_tokenizers.SPECIAL)
    keys = {
        "llama.vocab_size": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.token_type": [3] * special + [1] * (len(tokens) - special),
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_bos_token": None,  # so that the name decides
    }
    return keys, weights


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_name_splits_as_llama_cpp_does(pre, crossing, tmp_path):
    pytest.importorskip("llama_cpp")
    from tests.llamacpp import LlamaCpp

    keys, weights = crossing
    changes = keys | {"tokenizer.ggml.pre": pre}
    path = gguf_files.write(tmp_path / "m.gguf", changes=changes, weights=weights)
    read = tokenizer_of(GGUFFile(path))
    texts = tiny_tokenizers.texts(150, special=())
    if PRE_TOKENIZERS[pre].nfc:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    if pre in ("tekken", "gpt-4o", "llama4", "kanana2"):
        # llama.cpp has no classes of letters by case, and takes marks for no letters: hq splits as
        # the checkpoints do.
        texts = [re.sub(r"[^\x00-\x7f]", "", text) for text in texts]
    with LlamaCpp(path) as llama:
        for text in texts:
            assert read(text).input_ids == llama.tokens(text), text
