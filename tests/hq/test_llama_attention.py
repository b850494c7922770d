"""Suffixes of GGUF precisions: flash attention and quantized K-V caches in llama.cpp."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from gguf import GGMLQuantizationType, quants
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("llama_cpp")

import hq
from harness.store.environment import engine
from hq.backends.base import Backend
from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.llamacpp.attention import EXACT, Attention
from hq.llamacpp.context import Context
from hq.llamacpp.graph import GraphNodeFinder
from hq.llamacpp.library import load_library
from hq.llamacpp.model import LlamaModel
from hq.neurons.cett import MEASURES
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.precisions import BACKEND_OF
from hq.precisions.gguf import GGUF_PRECISIONS, SUFFIXES, attention_of
from tests import tiny
from tests.outputs import logits, off

GGUF = Callable[..., Path]
# Keys and values have 11 significant bits; softmax and three layers multiply their errors.
FLASH_LIMIT = 4e-3


def answers(backend: Backend, exchanges: list[PromptResponse]) -> np.ndarray:
    """Traces of the answers: [n, measure, layer, d_ff]."""
    shape = (len(MEASURES), backend.identity.n_layers, backend.identity.d_ff)
    values = np.empty((len(exchanges), *shape))
    for batch in backend.trace(exchanges, MEASURES, ("answer",)):
        values[batch.rows] = batch.values.reshape(-1, *shape)
    return values


# --- names


def test_every_gguf_precision_takes_every_suffix():
    for precision in GGUF_PRECISIONS:
        assert attention_of(precision) == EXACT
        for suffix in SUFFIXES:
            assert BACKEND_OF[f"{precision}+{suffix}"] == "llamacpp"
            assert attention_of(f"{precision}+{suffix}").flash
    assert not [name for name in BACKEND_OF if "+" in name]  # the list has each file once


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("nf4+kv-q8_0", r"'nf4\+kv-q8_0' has the suffix '\+kv-q8_0', which only GGUF precisions"),
        ("gguf-q8_0+kv-q9_0", r"no suffix of a GGUF precision 'kv-q9_0': did you mean 'kv-q8_0'"),
        ("gguf-q8_0+", r"no suffix of a GGUF precision ''.*known are fa, kv-q4_0, kv-q8_0"),
        ("gguf-q8_0+fa+kv-q8_0", r"no suffix of a GGUF precision 'fa\+kv-q8_0'"),
        ("gguf-q9_0+fa", r"no precision 'gguf-q9_0': did you mean 'gguf-q"),
    ],
)
def test_names_that_mean_nothing(precision, words, gguf):
    with pytest.raises(HQError, match=words):
        BACKEND_OF[precision]
    with pytest.raises(HQError, match=words):
        hq.load(gguf("llama", "q8_0"), precision, device="cpu")


# --- what is computed


def test_flash_attention_computes_the_same_up_to_f16(gguf):
    exchanges = tiny.exchanges()
    for model in ("llama", "llama-64", "gemma2"):  # gemma2 caps the logits of attention
        path = gguf(model)
        with (
            LlamaBackend(path, "gguf-f32") as plain,
            LlamaBackend(path, "gguf-f32+fa") as flash,
        ):
            assert 0 < off(answers(flash, exchanges), answers(plain, exchanges)) <= FLASH_LIMIT
            assert 0 < off(logits(flash, exchanges), logits(plain, exchanges)) <= FLASH_LIMIT


def rounded_attention(kind: str) -> Any:
    """Causal attention of transformers, whose keys, values and queries are rounded as ggml does."""

    def rounded(x: torch.Tensor, kind: str) -> torch.Tensor:
        number = GGMLQuantizationType[kind.upper()]
        return torch.from_numpy(quants.dequantize(quants.quantize(x.numpy(), number), number))

    def attention(
        module: Any, query: Any, key: Any, value: Any, *_: object, scaling: float, **__: object
    ) -> tuple[torch.Tensor, None]:
        q = rounded(query.contiguous(), "q8_0")  # ggml's products with Q8_0 and Q4_0
        k, v = (
            rounded(x.contiguous(), kind).repeat_interleave(module.num_key_value_groups, dim=1)
            for x in (key, value)
        )
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    return attention


@pytest.mark.parametrize(("kind", "limit"), [("q8_0", 1e-3), ("q4_0", 0.01)])
def test_a_quantized_cache_is_transformers_with_rounded_keys_and_values(kind, limit, gguf):
    path, exchanges = gguf("llama-32"), tiny.exchanges()
    hf.AttentionInterface.register(f"rounded-{kind}", rounded_attention(kind))
    model = hf.AutoModelForCausalLM.from_pretrained(
        path.with_suffix(""), attn_implementation=f"rounded-{kind}", dtype=torch.float32
    )
    expected = []
    with torch.inference_mode():
        for exchange in exchanges:
            ids = torch.tensor([[*exchange.prompt, *exchange.response]])
            ends = slice(len(exchange.prompt) - 1, -1)
            expected.append(model(ids).logits[0, ends].numpy())
    with (
        LlamaBackend(path, "gguf-f32") as plain,
        LlamaBackend(path, f"gguf-f32+kv-{kind}") as backend,
    ):
        actual = logits(backend, exchanges)
        assert off(actual, np.concatenate(expected)) <= limit
        assert off(actual, logits(plain, exchanges)) > 5 * limit


def test_traces_move_with_the_bits_of_the_cache(gguf):
    exchanges = tiny.exchanges()
    with LlamaBackend(gguf("llama-64"), "gguf-f32") as plain:
        expected = answers(plain, exchanges)
    errors = [0.0]
    for suffix in ("fa", "kv-q8_0", "kv-q4_0"):
        with LlamaBackend(gguf("llama-64"), f"gguf-f32+{suffix}") as backend:
            errors.append(off(answers(backend, exchanges), expected))
    assert all(2 * low < high for low, high in pairwise(errors))
    assert errors[-1] < 0.5


def test_the_callback_sees_the_same_ffn_nodes(gguf):
    with LlamaModel(gguf("llama-64")) as model:
        plain = model.graph_nodes(tiny.LAYERS, tiny.D_FF)
        assert plain.attention == "no flash attention, K f32, V f32"
        for suffix in SUFFIXES:
            nodes = model.graph_nodes(tiny.LAYERS, tiny.D_FF, SUFFIXES[suffix])
            assert replace(nodes, attention=plain.attention) == plain


# --- what is reported


@pytest.mark.parametrize(
    ("model", "suffix", "compute"),
    [
        ("llama-32", "", "float32"),
        ("llama-32", "+fa", "float32, flash attention, K f16, V f16"),
        ("llama-32", "+kv-q8_0", "float32, flash attention, K q8_0, V q8_0"),
        ("llama-64", "+fa", "float32, flash attention, K f16, V f16"),
        ("llama-64", "+kv-q4_0", "float32, flash attention, K q4_0 rotated, V q4_0 rotated"),
    ],
)
def test_compute_says_how_attention_ran(model, suffix, compute, gguf):
    with LlamaBackend(gguf(model), f"gguf-f32{suffix}") as backend:
        assert backend.precision == f"gguf-f32{suffix}"
        assert backend.compute == compute


def test_the_variable_that_turns_rotation_off_is_reported_and_in_keys(gguf, monkeypatch):
    unset = engine("gguf-f32+kv-q8_0", "cpu")
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    with LlamaBackend(gguf("llama-64"), "gguf-f32+kv-q8_0") as backend:
        assert backend.compute == "float32, flash attention, K q8_0, V q8_0"
    assert engine("gguf-f32+kv-q8_0", "cpu") == unset | {"LLAMA_ATTN_ROT_DISABLE": "1"}
    assert engine("gguf-f32+fa", "cpu") == engine("gguf-f32", "cpu") == unset


@pytest.mark.parametrize("asked", [EXACT, *(SUFFIXES[suffix] for suffix in SUFFIXES)])
def test_attention_that_runs_otherwise_is_an_error(asked, gguf):
    """As where llama.cpp turns flash attention off for an architecture."""
    runs = Attention(flash=not asked.flash, keys="f32", values="f16")
    with LlamaModel(gguf("llama-64")) as model:
        finder = GraphNodeFinder("tiny.gguf")
        callback = load_library().llama.ggml_backend_sched_eval_callback(finder)
        with Context(model, None, tokens=32, batch=8, callback=callback, attention=runs) as context:
            context.decode([5], [0], [0], [True])
        layers = 3 if runs.flash else 0
        with pytest.raises(
            HQError, match=rf"flash attention in {layers} of 3 layers.*K f32, V f16"
        ):
            finder.nodes(tiny.LAYERS, tiny.D_FF, asked)


# --- what cannot run


@pytest.mark.parametrize("suffix", ["kv-q8_0", "kv-q4_0"])
def test_heads_that_do_not_fill_blocks(suffix, gguf):
    words = rf"gguf-f32\+{suffix} .* blocks of 32 .* heads of .*llama-f32\.gguf have 16.*use \+fa"
    with pytest.raises(HQError, match=words):
        LlamaBackend(gguf("llama"), f"gguf-f32+{suffix}")


def test_quantized_values_without_flash_attention(gguf):
    with LlamaModel(gguf("llama-64")) as model:
        words = "quantized V cache requires flash_attn"
        with pytest.raises(HQError, match=words):
            Context(model, None, attention=Attention(flash=False, values="q8_0"))


# --- the API and its monitor


def test_the_api_and_its_monitor_run_at_a_suffix(gguf):
    path, prompt = gguf("llama-64", "q8_0"), (5, 6, 7, 8)
    with hq.load(path, "gguf-source+kv-q4_0", device="cpu") as model:
        assert model.precision == "gguf-source+kv-q4_0"
        neurons = NeuronSet(
            model=model.identity,
            cett="sum",
            tokens="answer",
            labels="1-vs-1",
            intercept=0.1,
            neurons=(Neuron(layer=2, index=7, weight=1.0, mean=0.01, scale=0.02),),
        )
        with hq.Monitor(model, neurons) as monitor:
            tokens = [step.token for step in monitor.follow(prompt, (9, 10, 11, 12))]
        features = model.trace([prompt], [tokens])
        assert features.precision == model.precision
        # The monitor and the trace decode batches of other shapes.
        assert monitor.score == pytest.approx(float(neurons.score(features)[0]), rel=0.05)
    with hq.load(path, device="cpu") as plain:
        exact = float(neurons.score(plain.trace([prompt], [tokens]))[0])
    assert abs(monitor.score - exact) > 1e-3


# --- the embedded model


@pytest.mark.slow
def test_the_embedded_model_at_every_suffix(tmp_path):
    """On real answers a coarser cache changes more, and Q8_0 hardly more than F16."""
    from harness.bench.cett import question_texts
    from harness.models.packaged import packaged_gguf
    from harness.models.sources import resolve_model
    from hq.backends.transformers.backend import TorchBackend

    with TorchBackend(resolve_model("smollm2"), device="cpu") as torch_backend:
        texts = question_texts(torch_backend, seed=0, count=16)[1]
    log_p, traces, divergences, errors = None, None, [], []
    for suffix in ("", "+fa", "+kv-q8_0", "+kv-q4_0"):
        with LlamaBackend(packaged_gguf(), f"gguf-source{suffix}") as backend:
            kind = suffix.removeprefix("+kv-")
            if suffix.startswith("+kv"):
                caches = f"K {kind} rotated, V {kind} rotated"  # heads of 64
                assert backend.compute == f"int8, flash attention, {caches}"
            log_q = torch.log_softmax(torch.from_numpy(logits(backend, texts)), dim=-1)
            traced = answers(backend, texts)
        if log_p is None or traces is None:
            log_p, traces = log_q, traced
        else:
            kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            divergences.append(float(kl))
            errors.append(float(np.linalg.norm(traced - traces) / np.linalg.norm(traces)))
    assert min(divergences) > 0
    assert max(divergences[:2]) < 0.05 < divergences[2] < 1
    assert max(errors[:2]) < 0.06 < errors[2] < 0.3
