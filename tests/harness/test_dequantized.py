"""GGUF files as FP16 checkpoints: every setting of the file is in the loaded model."""

import json

import numpy as np
import pytest
import transformers as hf

from harness.models import dequantized, equality
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.read_config import config_of
from hq.gguf.write import write_gguf
from hq.models.checkpoint import checkpoint_identity, text_config
from tests import tiny, tiny_tokenizers
from tests.hq import gguf_checkpoints, gguf_files

ROPE = {"rope_theta": 500_000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
}


def config(family, **changes):
    """A tiny config of the family with other settings, which stay as they are given."""
    made = tiny.FAMILIES[family]()
    return type(made)(**(made.to_dict() | changes))


# hq's writer makes the same file of them as llama.cpp's converter.
WRITTEN = {
    "llama3": lambda: config(
        "llama",
        rope_parameters=ROPE | LLAMA3 | {"original_max_position_embeddings": 8192},
    ),
    "another llama3": lambda: config(
        "llama",
        rope_parameters=ROPE | LLAMA3 | {"original_max_position_embeddings": 64, "factor": 4.0},
    ),
    "biases, another epsilon": lambda: config(
        "llama", attention_bias=True, mlp_bias=True, rms_norm_eps=3e-3
    ),
    "tied": lambda: config("llama", tie_word_embeddings=True),
    "linear": lambda: config(
        "qwen2", rope_parameters=ROPE | {"rope_type": "linear", "factor": 4.0}
    ),
    "qwen3 head_dim": lambda: config("qwen3", head_dim=32),
    "gemma2 caps": lambda: config(
        "gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=16
    ),
    "gemma3 linear, cap": lambda: config(
        "gemma3_text",
        num_hidden_layers=6,
        layer_types=None,
        rope_parameters=GEMMA3_ROPE,
        query_pre_attn_scalar=16,
        final_logit_softcapping=2.0,
    ),
}


def save(folder, made):
    tokenizer = tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False)
    return gguf_checkpoints.save(folder, made, tokenizer)


def require_same_traces(source, folder):
    """Every neuron's trace, relative to the layer's largest."""
    texts = tiny.exchanges()
    spans = ("answer", "prompt")
    with TorchBackend(source) as theirs, TorchBackend(folder) as ours:
        for expected, found in zip(
            theirs.trace(texts, spans=spans), ours.trace(texts, spans=spans), strict=True
        ):
            for layer in theirs.identity.space.slices:
                before, after = expected.values[..., layer], found.values[..., layer]
                size = before.max(axis=-1, keepdims=True)
                assert (np.abs(after - before) / size).max() < 1e-5


@pytest.mark.parametrize("case", WRITTEN)
def test_a_setting_is_carried_over(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    source = save(tmp_path / "source", WRITTEN[case]())
    write_gguf(source, tmp_path / "model.gguf", "f32", checkpoint_identity(source))
    folder = dequantized.checkpoint_of(tmp_path / "model.gguf")
    require_same_traces(source, folder)
    assert equality.is_verified(folder) == equality.can_verify()


def test_gemma2_of_46_layers_has_the_query_scale_of_27b(tmp_path):
    sizes = {"num_hidden_layers": 46, "head_dim": 32, "query_pre_attn_scalar": 16}
    made = config("gemma2", **sizes, layer_types=None, hidden_size=64)
    source = save(tmp_path / "source", made)
    write_gguf(source, tmp_path / "model.gguf", "f32", checkpoint_identity(source))
    found = config_of(GGUFFile(tmp_path / "model.gguf"))
    assert found.config.query_pre_attn_scalar == 16
    assert found.config.layer_types == made.layer_types
    assert found.unread == ()


def weights_of(file):
    """Its tensors, dequantized, vectors as such."""
    return {
        name: file.dense(name).reshape(tensor.shape[::-1]) for name, tensor in file.tensors.items()
    }


def saying(path, source, **said):
    """The tiny model of a GGUF file, with other settings: by their keys after the architecture."""
    file = GGUFFile(source)
    weights = weights_of(file)
    named = {f"{file.architecture}.{key}": value for key, value in said.items()}
    path.parent.mkdir(exist_ok=True)
    kept = {k: v for k, v in file.metadata.items() if k.startswith(f"{file.architecture}.")}
    return gguf_files.write(
        path, "F32", weights=weights, changes=kept | named, architecture=file.architecture
    )


SAID = {
    "yarn": (
        "llama",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "the old key of linear scaling": (
        "llama",
        {"rope.scale_linear": 4.0},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "a factor without a type": (
        "qwen2",
        {"rope.scaling.factor": 2.0},
        {"rope_type": "linear", "factor": 2.0},
    ),
    "a factor that is not in force": (
        "qwen3",
        {"rope.scaling.type": "none", "rope.scaling.factor": 2.0},
        {"rope_type": "default"},
    ),
    "another pattern of windows": (
        "gemma3",
        {"attention.sliding_window_pattern": 2, "attention.sliding_window": 3},
        {},
    ),
    "no window": ("gemma3", {"attention.sliding_window": 0}, {}),
}


@pytest.mark.parametrize("case", SAID)
def test_llama_cpp_computes_the_same(case, gguf, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    architecture, said, expected = SAID[case]
    family = {"gemma3": "gemma3_text"}.get(architecture, architecture)
    path = saying(tmp_path / "model.gguf", gguf(family), **said)
    folder = dequantized.checkpoint_of(path)  # which raises where logits differ
    record = json.loads((folder / equality.RECORD).read_text(encoding="utf-8"))
    assert record["difference"] < record["tolerance"]
    if expected:
        rope = text_config(folder).rope_parameters
        assert {key: rope[key] for key in expected} == expected


UNKNOWN = {"attention.causal": False}


def test_a_setting_that_moves_logits_is_refused_by_name(gguf, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    path = saying(tmp_path / "model.gguf", gguf("llama"), **UNKNOWN)
    with pytest.raises(HQError, match=r"differs from llama.cpp's logits .*llama.attention.causal"):
        dequantized.checkpoint_of(path)
    assert not list((tmp_path / "cache").rglob("config.json")), "nothing unproved is left"


def test_without_llama_cpp_an_unknown_setting_is_refused(gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(equality, "can_verify", lambda: False)
    path = saying(tmp_path / "model.gguf", gguf("llama"), **UNKNOWN)
    with pytest.raises(HQError, match=r"has the setting llama.attention.causal"):
        dequantized.checkpoint_of(path)


def test_a_checkpoint_made_without_llama_cpp_is_proved_later(gguf, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as absent:
        absent.setattr(equality, "can_verify", lambda: False)
        folder = dequantized.checkpoint_of(gguf("llama"))
        assert not equality.is_verified(folder)
    weights = folder / "model.safetensors"
    inode = weights.stat().st_ino
    assert dequantized.checkpoint_of(gguf("llama")) == folder
    assert equality.is_verified(folder)
    assert weights.stat().st_ino == inode, "the weights are not made anew"


def test_a_checkpoint_that_fails_its_late_proof_is_removed(gguf, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as absent:
        absent.setattr(equality, "can_verify", lambda: False)
        folder = dequantized.checkpoint_of(gguf("llama"))
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(
        text.replace('"rope_theta": 10000.0', '"rope_theta": 500.0'), encoding="utf-8"
    )
    with pytest.raises(HQError, match=r"differs from llama\.cpp's logits"):
        dequantized.checkpoint_of(gguf("llama"))
    assert not folder.exists()


def test_files_of_equal_tensors_and_other_settings_are_two_models(gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(equality, "can_verify", lambda: False)
    plain, scaled = (
        saying(tmp_path / name / "model.gguf", gguf("llama"), **{"rope.scaling.factor": factor})
        for name, factor in (("plain", 1.0), ("scaled", 4.0))
    )
    assert GGUFFile(plain).fingerprint == GGUFFile(scaled).fingerprint
    kinds = [
        text_config(dequantized.checkpoint_of(path)).rope_parameters["rope_type"]
        for path in (plain, scaled)
    ]
    assert kinds == ["default", "linear"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"attention.value_length": 32}, "attention.value_length = 32"),
        ({"rope.dimension_count": 8}, "rope.dimension_count = 8"),
        ({"rope.scaling.type": "longrope"}, "lacks the tensors rope_factors"),
        ({"rope.scaling.type": "dynamic"}, "hq reads linear, longrope, none, yarn"),
    ],
)
def test_what_no_config_can_say_is_refused(said, words, gguf, monkeypatch):
    file = GGUFFile(gguf("llama"))
    for key, value in said.items():
        monkeypatch.setitem(file.header.metadata, f"llama.{key}", value)
    with pytest.raises(HQError, match=words):
        config_of(file)


def test_a_bias_in_some_layers_only_is_zero_in_the_others(gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    file = GGUFFile(gguf("llama"))
    weights = weights_of(file)
    weights["blk.1.attn_q.bias"] = np.linspace(-1, 1, 64, dtype=np.float32)
    path = gguf_files.write(tmp_path / "model.gguf", "F32", weights=weights)
    folder = dequantized.checkpoint_of(path)
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    biases = [layer.self_attn.q_proj.bias for layer in model.model.layers]
    assert [float(bias.detach().abs().max()) for bias in biases] == [0, 1, 0]


def test_a_bias_without_a_place_is_refused(gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    file = GGUFFile(gguf("qwen2"))
    weights = weights_of(file)
    weights["blk.0.attn_output.bias"] = np.ones(64, dtype=np.float32)
    path = gguf_files.write(tmp_path / "model.gguf", "F32", weights=weights, architecture="qwen2")
    with pytest.raises(HQError, match=r"tensor blk.0.attn_output.bias, which transformers' qwen2"):
        dequantized.checkpoint_of(path)


def test_weights_that_float16_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    weights = gguf_files.llama_weights()
    weights["blk.2.ffn_up.weight"][3, 4] = 1e5
    path = gguf_files.write(tmp_path / "model.gguf", "F32", weights=weights)
    with pytest.raises(HQError, match=r"layers.2.mlp.up_proj.weight that are not finite"):
        dequantized.checkpoint_of(path)


def as_llama_cpp_names(model, architecture, transposed=False):
    """A model's weights by llama.cpp's names, as its converter writes them."""
    import gguf

    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, tiny.LAYERS)
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        theirs = table.get_name(name, try_suffixes=(".weight", ".bias"))
        array = weight.float().numpy()
        linear = transposed and ".h." in name and array.ndim == 2
        found[theirs] = np.ascontiguousarray(array.T) if linear else array
    return found


def test_gpt2_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    source = save(tmp_path / "source", tiny.FAMILIES["gpt2"]())
    model = hf.AutoModelForCausalLM.from_pretrained(source)
    weights = as_llama_cpp_names(model, "gpt2", transposed=True)
    path = gguf_files.write(tmp_path / "m.gguf", "F32", weights=weights, architecture="gpt2")
    require_same_traces(source, dequantized.checkpoint_of(path))


def test_phi3_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4 + [1.5] * 2,
        "long_factor": [2.0] * 6,
    }
    made = config(
        "phi3",
        rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.75, **rope},
        max_position_embeddings=2048,
        original_max_position_embeddings=1024,
    )
    source = save(tmp_path / "source", made)
    model = hf.AutoModelForCausalLM.from_pretrained(source)
    weights = as_llama_cpp_names(model, "phi3")
    for name in ("short", "long"):
        factors = np.array(rope[f"{name}_factor"], dtype=np.float32)
        weights[f"rope_factors_{name}.weight"] = factors
    attention = float(np.sqrt(1 + np.log(2) / np.log(1024)))
    said = {
        "general.name": "tiny",  # llama.cpp looks for tokens of Phi-3 in a model of that name
        "phi3.rope.scaling.type": "longrope",
        "phi3.rope.scaling.original_context_length": 1024,
        "phi3.rope.scaling.attn_factor": attention,
        "phi3.context_length": 2048,
        "phi3.rope.dimension_count": 12,
        "phi3.attention.sliding_window": 0,
    }
    path = gguf_files.write(
        tmp_path / "m.gguf", "F32", weights=weights, architecture="phi3", changes=said
    )
    require_same_traces(source, dequantized.checkpoint_of(path))
