"""The output head: logits from hidden states, scaled and capped as in the model."""

import numpy as np
import pytest
import torch
import transformers as hf

from hq.errors import HQError
from hq.models.head import Head, ReferenceLogits, head_of
from tests import tiny

SHAPE = {
    "vocab_size": 700,  # more than one block
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
MODELS = {
    "llama, wide": lambda: hf.LlamaConfig(**SHAPE),
    "tied": lambda: hf.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "gemma2, soft-cap": lambda: hf.Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=5.0),
    "gemma2, no cap": lambda: hf.Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=None),
    "cohere, factor": lambda: hf.CohereConfig(**SHAPE, logit_scale=0.3),
    "granite, divisor": lambda: hf.GraniteConfig(**SHAPE, logits_scaling=7.0),
    "phi, bias": lambda: hf.PhiConfig(**SHAPE),
    "opt, projected": lambda: hf.OPTConfig(
        vocab_size=700, hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    ),
}  # fmt: skip


def built(name):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(MODELS[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def ids(count=9):
    return torch.arange(3, 3 + count)[None]


@pytest.fixture(params=[*MODELS, *tiny.FAMILIES])
def model(request):
    return built(request.param) if request.param in MODELS else tiny.model(request.param)


@torch.inference_mode()
def test_the_heads_logits_are_the_models_own(model, tmp_path):
    head = head_of(model, model.get_decoder())
    hidden = model.get_decoder()(ids(), use_cache=False).last_hidden_state[0]
    expected = model(ids(), use_cache=False).logits[0]
    torch.testing.assert_close(head.logits(hidden), expected, atol=1e-5, rtol=1e-5)
    blocks = torch.cat([block for _, block in head.blocks(hidden)], dim=1)
    torch.testing.assert_close(blocks, expected, atol=1e-5, rtol=1e-5)
    head.save(tmp_path)
    again = Head.load(tmp_path)
    torch.testing.assert_close(again.logits(hidden), head.logits(hidden), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_sixteen_bits_are_stored_in_sixteen_bits(dtype, tmp_path):
    weight = torch.randn(5000, 8).to(dtype)
    Head(weight.float()).save(tmp_path)
    found = Head.load(tmp_path).weight
    assert found.element_size() == 2
    assert torch.equal(found.float(), weight.float())


def test_logits_that_the_model_changes_further_are_refused(monkeypatch):
    model = built("llama, wide")
    forward = model.forward

    def capped(*arguments, **options):
        found = forward(*arguments, **options)
        found.logits = 2 * torch.tanh(found.logits / 2)  # which the config does not mention
        return found

    monkeypatch.setattr(model, "forward", capped)
    with pytest.raises(HQError, match="LlamaForCausalLM are not its output head times"):
        head_of(model, model.get_decoder())


def test_a_head_that_is_no_matrix_is_refused():
    model = built("llama, wide")
    model.lm_head = torch.nn.Identity()
    with pytest.raises(HQError, match="not a dense matrix"):
        head_of(model, model.get_decoder())


def test_logits_that_overflow_are_named():
    model = built("llama, wide")
    with torch.no_grad():
        model.get_decoder().layers[-1].mlp.down_proj.weight.fill_(3e38)
    with pytest.raises(HQError, match="LlamaForCausalLM are not finite"):
        head_of(model, model.get_decoder())


def test_a_reference_finds_the_tokens_of_its_texts(tmp_path):
    hidden = np.arange(12, dtype=np.float32).reshape(6, 2)
    ReferenceLogits(hidden, [0, 1, 3, 6], Head(torch.eye(2))).save(tmp_path)
    reference = ReferenceLogits.load(tmp_path, [1, 2, 3])
    found = reference.blocks([2, 0])(0, 2)
    np.testing.assert_array_equal(found, hidden[[3, 4, 5, 0]])
    np.testing.assert_array_equal(reference.blocks([2, 0], tokens=slice(2, 4))(1, 2)[:, 0], [11, 1])


@pytest.mark.parametrize("lengths", [[1, 2, 4], [1, 2]])
def test_a_reference_of_other_texts_is_refused(lengths, tmp_path):
    ReferenceLogits(np.zeros((6, 2), np.float32), [0, 1, 3, 6], Head(torch.eye(2))).save(tmp_path)
    with pytest.raises(HQError, match="holds 6 tokens of a reference"):
        ReferenceLogits.load(tmp_path, lengths)


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    np.save(tmp_path / "log_probs.npy", np.zeros((6, 2), np.float16))
    with pytest.raises(HQError, match="--fresh"):
        ReferenceLogits.load(tmp_path, [6])
