"""A written GGUF file computes what its checkpoint does, and splits texts as its tokenizer does."""

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.write import Dtype, write_gguf
from hq.models.checkpoint import checkpoint_identity
from tests import decoders, tiny, tiny_tokenizers
from tests.hq.gguf_checkpoints import keys, save, shape

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

from tests.llamacpp import LlamaCpp  # noqa: E402

# llama.cpp computes GELU through a table of float16 numbers; a wrong key or weight costs over 0.1.
EXACT, GELU = 1e-4, 5e-3
Config = Callable[[], hf.PretrainedConfig]


def gemma(**changes: Any) -> hf.Gemma3TextConfig:
    return hf.Gemma3TextConfig(**shape(head_dim=16, sliding_window=8) | changes)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FULL_SCALED = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}
# Config, tokens of the text that is tried, tolerance.
MODELS: dict[str, tuple[Config, int, float]] = {
    "llama": (tiny.FAMILIES["llama"], 40, EXACT),
    "llama, tied, wide heads": (
        lambda: hf.LlamaConfig(**shape(), head_dim=32, tie_word_embeddings=True),
        40,
        EXACT,
    ),
    "llama, biases": (
        lambda: hf.LlamaConfig(**shape(), attention_bias=True, mlp_bias=True),
        40,
        EXACT,
    ),
    "llama 3 rope": (lambda: hf.LlamaConfig(**shape(), rope_parameters=LLAMA3), 100, EXACT),
    "llama, linear rope": (
        lambda: hf.LlamaConfig(
            **shape(), rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        ),
        100,
        EXACT,
    ),
    # A longer text would meet the window, which llama.cpp does not know: the file says so.
    "mistral, within its window": (tiny.FAMILIES["mistral"], 8, EXACT),
    "mistral without a window": (
        lambda: hf.MistralConfig(**shape(), sliding_window=None),
        40,
        EXACT,
    ),
    "qwen2": (tiny.FAMILIES["qwen2"], 40, EXACT),
    "qwen3": (tiny.FAMILIES["qwen3"], 40, EXACT),
    "gemma2": (tiny.FAMILIES["gemma2"], 40, GELU),
    "gemma3_text": (tiny.FAMILIES["gemma3_text"], 40, GELU),
    "gemma3_text, 7 layers": (lambda: gemma(num_hidden_layers=7), 40, GELU),
    "gemma3_text, scaled": (
        lambda: gemma(
            num_hidden_layers=7,
            rope_parameters=FULL_SCALED,
            query_pre_attn_scalar=20,
            final_logit_softcapping=5.0,
        ),
        100,
        GELU,
    ),
    "gemma3": (tiny.FAMILIES["gemma3"], 40, GELU),
}


def written(checkpoint: Path, dtype: Dtype = "f32") -> Path:
    into = checkpoint.parent / f"{checkpoint.name}-{dtype}.gguf"
    write_gguf(checkpoint, into, dtype, checkpoint_identity(checkpoint))
    return into


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to be read only, and copied where it is to be broken."""
    return save(tmp_path_factory.mktemp("llama") / "tiny", tiny.FAMILIES["llama"]())


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "broken"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )


def rejected(folder: Path, sentence: str, dtype: Dtype = "f32") -> None:
    into = folder.parent / "out" / "model.gguf"
    with pytest.raises(HQError, match=sentence):
        write_gguf(folder, into, dtype, checkpoint_identity(folder))
    assert not into.parent.exists() or not list(into.parent.iterdir())


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config, length, tolerance = MODELS[name]
    checkpoint = save(tmp_path / "model", config())
    ids = torch.randint(3, tiny.VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0].numpy()
    with LlamaCpp(written(checkpoint)) as llama:
        np.testing.assert_allclose(llama.logits(ids[0].tolist()), expected, atol=tolerance, rtol=0)


# A wrapper decides itself whether the head is the embedding: mistral3's language model says no.
@pytest.mark.parametrize("name", ["mistral3", "llava", "smolvlm", "internvl"])
def test_the_language_model_of_a_wrapper_is_written(name: str, tmp_path: Path) -> None:
    checkpoint = decoders.save(decoders.RECORDED[name](), tmp_path / "model")
    tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False).save_pretrained(checkpoint)
    ids = torch.arange(5, 45)[None]
    model = decoders.model(decoders.RECORDED[name]())
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0].numpy()
    with LlamaCpp(written(checkpoint)) as llama:
        np.testing.assert_allclose(llama.logits(ids[0].tolist()), expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("own", [False, True])
def test_a_tied_model_s_head_counts_where_it_is_not_the_embedding(
    own: bool, tmp_path: Path
) -> None:
    config = hf.LlamaConfig(**shape(), tie_word_embeddings=True)
    checkpoint = save(tmp_path / "model", config)
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"]
    head = embedding.flip(0) if own else embedding
    save_file(tensors | {"lm_head.weight": head.clone()}, path, metadata={"format": "pt"})
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0].numpy()
    file = written(checkpoint)
    assert ("output.weight" in GGUFFile(file).tensors) is own
    with LlamaCpp(file) as llama:
        np.testing.assert_allclose(llama.logits(ids[0].tolist()), expected, atol=EXACT, rtol=0)


def test_a_model_without_a_conversion_is_refused_with_those_that_have_one(tmp_path: Path) -> None:
    checkpoint = decoders.save(decoders.RECORDED["granite"](), tmp_path / "model")
    rejected(
        checkpoint, r"'granite' cannot be written as GGUF: hq writes gemma2, .*, qwen3_moe; use a"
    )


def test_a_window_that_llama_cpp_does_not_know_ends_the_context(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "model", tiny.FAMILIES["mistral"]())
    assert keys(written(checkpoint))["llama.context_length"] == 8
    whole = save(tmp_path / "whole", hf.MistralConfig(**shape(), sliding_window=None))
    assert keys(written(whole))["llama.context_length"] == 128


def test_the_file_says_what_it_was_made_of(llama: Path) -> None:
    who = checkpoint_identity(llama)
    actual = keys(written(llama))
    for field in ("name", "fingerprint", "architecture"):
        assert actual[f"hq.source.{field}"] == getattr(who, field)
    assert actual.get("hq.source.kin", "") == who.norm_digest
    assert GGUFFile(written(llama)).identity == who


def test_matrices_are_f16_and_vectors_f32(llama: Path) -> None:
    tensors = gguf.GGUFReader(written(llama, "f16")).tensors
    kinds = {tensor.tensor_type.name: [] for tensor in tensors}
    for tensor in tensors:
        kinds[tensor.tensor_type.name].append(len(tensor.shape))
    assert set(kinds["F16"]) == {2}
    assert set(kinds["F32"]) == {1}


def test_shards_give_the_same_file(tmp_path: Path) -> None:
    config = tiny.FAMILIES["qwen2"]()
    one, many = (
        written(save(tmp_path / name / "model", config, max_shard_size=size))
        for name, size in (("one", "1GB"), ("many", "40KB"))
    )
    assert len(list((tmp_path / "many" / "model").glob("*.safetensors"))) > 3
    first, second = (
        {t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors} for path in (one, many)
    )
    assert first == second


def test_rows_without_a_token_are_padded(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizers.byte_level(100, every_byte=False)
    actual = keys(written(save(tmp_path / "model", tiny.FAMILIES["llama"](), tokenizer)))
    tokens, types = actual["tokenizer.ggml.tokens"], actual["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == tiny.VOCABULARY
    assert tokens[100:] == [f"[PAD{i}]" for i in range(100, 128)]
    assert set(types[100:]) == {5}
    assert types[:4] == [3, 3, 3, 1]


def test_ends_of_an_answer_have_places_of_their_own(broken: Path) -> None:
    (broken / "generation_config.json").write_text(
        '{"eos_token_id": [9, 2, 7, 8]}', encoding="utf-8"
    )
    actual = keys(written(broken))
    assert [actual[f"tokenizer.ggml.{k}_token_id"] for k in ("bos", "eos", "eot", "eom")] == [
        1,
        2,
        9,
        7,
    ]


def test_the_chat_template_is_kept(broken: Path) -> None:
    (broken / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert keys(written(broken))["tokenizer.chat_template"] == "{{ messages }}"


# Tokenizers.


def disagreements(
    folder: Path, tokenizer: Any, special: tuple[str, ...] = tiny_tokenizers.SPECIAL[1:]
) -> tuple[list[str], list[str]]:
    """The texts, and those of them that llama.cpp splits otherwise than transformers."""
    config = hf.LlamaConfig(**shape(vocab_size=len(tokenizer) + 5))
    checkpoint = save(folder / "model", config, tokenizer)
    return _disagreements(checkpoint, written(checkpoint, "f16"), special)


def _disagreements(
    checkpoint: Path, file: Path, special: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    texts = tiny_tokenizers.texts(1000, special=special)
    tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint)
    with LlamaCpp(file) as llama:
        return texts, [t for t in texts if llama.tokens(t) != tokenizer(t).input_ids]


@pytest.mark.parametrize("pre", tiny_tokenizers.BYTE_LEVEL)
def test_byte_level_tokenizers_agree(pre: str, tmp_path: Path) -> None:
    assert disagreements(tmp_path, tiny_tokenizers.byte_level(512, pre))[1] == []
    assert keys(tmp_path / "model-f16.gguf")["tokenizer.ggml.pre"] == pre


@pytest.mark.parametrize("spaces", ["prepend", "never"])
def test_sentencepiece_tokenizers_agree(spaces: str, tmp_path: Path) -> None:
    assert disagreements(tmp_path, tiny_tokenizers.sentencepiece(700, spaces))[1] == []


def test_metaspace_always_differs_only_where_a_text_begins_with_a_space(tmp_path: Path) -> None:
    texts, actual = disagreements(tmp_path, tiny_tokenizers.sentencepiece(700, "always"))
    assert actual == [t for t in texts if re.search(r"(^|<s>|</s>) ", t)]


def test_metaspace_first_differs_after_special_tokens_too(tmp_path: Path) -> None:
    texts, actual = disagreements(tmp_path, tiny_tokenizers.sentencepiece(700, "first"))
    inside = re.compile(r"^ |(<s>|</s>)(?!<s>|</s>|$)")
    assert actual == [t for t in texts if inside.search(t)]


def test_normalisation_is_left_to_the_caller(tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = tiny_tokenizers.byte_level(512, "qwen2")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    _, actual = disagreements(tmp_path, tokenizer)
    assert all(unicodedata.normalize("NFC", text) != text for text in actual)


def test_added_tokens_are_found_in_a_text(tmp_path: Path) -> None:
    for name, tokenizer in (
        ("bytes", tiny_tokenizers.byte_level(512, "qwen2")),
        ("pieces", tiny_tokenizers.sentencepiece(700, "never")),
    ):
        tokenizer.add_tokens(["<think>", "the model"])
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
        special = ("<think>", "the model", "<|im_end|>", "</s>")
        assert disagreements(tmp_path / name, tokenizer, special)[1] == []


def test_first_and_last_tokens_are_added_as_the_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizers.sentencepiece(700, "never")
    checkpoint = save(tmp_path / "model", hf.LlamaConfig(**shape(vocab_size=700)), tokenizer)
    actual = keys(written(checkpoint))
    assert actual["tokenizer.ggml.add_bos_token"] is True
    assert actual["tokenizer.ggml.add_eos_token"] is False


# Refusals: a sentence, and nothing left behind.


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    rejected(save(tmp_path / "model", tiny.FAMILIES["phi3"]()), "'phi3' cannot be written as GGUF")


def test_a_missing_tokenizer_is_named(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    rejected(broken, "has no tokenizer")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [("model.layers.0.self_attn.q_norm.weight", "q_norm"), ("model.norm.bias", "model.norm.bias")],
)
def test_an_unexpected_tensor_is_named(broken: Path, key: str, sentence: str) -> None:
    edit_weights(broken, lambda weights: weights | {key: torch.ones(16)})
    rejected(broken, sentence)


def test_a_missing_head_is_named(broken: Path) -> None:
    edit_weights(broken, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    rejected(broken, re.escape("has no output.weight"))


def test_weights_that_float16_cannot_hold_are_named(broken: Path) -> None:
    key = "model.layers.0.mlp.up_proj.weight"
    edit_weights(broken, lambda w: w | {key: w[key].float() * 1e6})
    rejected(broken, "blk.0.ffn_up.weight has weights that are not finite", "f16")
    written(broken, "f32")


def test_quantized_weights_are_rejected(broken: Path) -> None:
    key = "model.layers.0.mlp.up_proj.weight"
    edit_weights(broken, lambda w: w | {key: w[key].to(torch.int8)})
    rejected(broken, "before quantization")


def edit_weights(
    folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "relu"}, "activation relu"),
        ({"rope_parameters": LLAMA3 | {"rope_type": "dynamic"}}, "rope scaling 'dynamic'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_rejected(
    broken: Path, changes: dict[str, Any], sentence: str
) -> None:
    change_config(broken, **changes)
    rejected(broken, sentence)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (lambda: gemma(layer_types=["full_attention"] * 3), "layer_types"),
        (lambda: gemma(attn_logit_softcapping=50.0), "attn_logit_softcapping"),
        (lambda: hf.Gemma2Config(**shape(head_dim=16), query_pre_attn_scalar=20), "query_pre_attn"),
        (lambda: hf.Qwen2Config(**shape(), head_dim=32), "head_dim 32"),
    ],
)
def test_configs_that_llama_cpp_ignores_are_rejected(
    config: Config, sentence: str, tmp_path: Path
) -> None:
    rejected(save(tmp_path / "model", config()), sentence)


def test_a_tokenizer_larger_than_the_embedding_is_rejected(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizers.byte_level(300)
    rejected(save(tmp_path / "m", tiny.FAMILIES["llama"](), tokenizer), "the embedding ends at row")


def test_unknown_tokenizers_are_named(llama: Path, tmp_path: Path) -> None:
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    spaces = Tokenizer(models.BPE({"<unk>": 0, "a": 1}, []))
    spaces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = tiny_tokenizers.sentencepiece(700).backend_tokenizer
    core = json.loads(pieces.to_str())
    core["model"]["merges"] = core["model"]["merges"][1:]
    for name, tokenizer, sentence in (
        ("unigram", unigram, "of type Unigram"),
        ("spaces", spaces, "splits by .*Whitespace"),
        ("merges", Tokenizer.from_str(json.dumps(core)), "does not merge"),
        ("bytes", Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True)), "no token <0x00>"),
    ):
        folder = Path(shutil.copytree(llama, tmp_path / name / "model"))
        hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
        rejected(folder, sentence)


def test_a_failure_leaves_an_older_file_as_it_was(broken: Path) -> None:
    into = written(broken)
    before = into.read_bytes()
    edit_weights(broken, lambda w: w | {"lm_head.weight": w["lm_head.weight"] * torch.nan})
    with pytest.raises(HQError, match="not finite"):
        written(broken)
    assert into.read_bytes() == before
    assert sorted(p.name for p in into.parent.iterdir()) == ["broken", into.name]


def test_a_missing_package_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    rejected(llama, "pip install 'hq\\[llama\\]'")


@pytest.mark.slow
def test_the_embedded_model_agrees(tmp_path: Path) -> None:
    from harness.models.sources import resolve_model

    source = resolve_model("smollm2")
    write_gguf(source, tmp_path / "model.gguf", "f32", checkpoint_identity(source))
    special = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>")
    tokenizer = hf.AutoTokenizer.from_pretrained(source)
    texts, actual = _disagreements(source, tmp_path / "model.gguf", special)
    # Bytes that the vocabulary lacks are dropped by both; transformers then merges over the gap.
    lacking = "\x04\x06\x13\x14\x16\x1d"
    assert [t for t in actual if not set(t) & set(lacking)] == []
    ids = tokenizer(" ".join(texts[:9])).input_ids[:100]
    model = hf.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    with LlamaCpp(tmp_path / "model.gguf") as llama:
        np.testing.assert_allclose(llama.logits(ids), expected, atol=1e-3, rtol=0)
