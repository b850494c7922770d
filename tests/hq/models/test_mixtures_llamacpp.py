"""Mixtures of experts on llama.cpp, compared with transformers on the same weights."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from jaxtyping import Float

from hq.backends.llamacpp.backend import LlamaBackend
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.read_config import config_of
from hq.gguf.write import write_gguf
from hq.models.alignment import ALIGNED, map_model
from hq.models.checkpoint import checkpoint_identity
from hq.models.ffn_weights import of_checkpoint
from hq.monitor.bundle import Bundle, Domain
from hq.monitor.llamacpp import LlamaMonitor
from hq.neurons.cett import MEASURES, SPANS
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.suppress.bake import bake
from hq.suppress.lora.gguf import write_gguf_adapter
from tests import bundles, tiny
from tests.hq.models.test_architectures import far

pytest.importorskip("llama_cpp")

NAMES = sorted(tiny.MIXTURES_IN_LLAMACPP)
# As in tests/hq/test_llamacpp.py for dense models, relative, or absolute for logits.
NORMS, CETT, LOGITS = 1e-6, 1e-4, 1e-3


class Pair(NamedTuple):
    """One model on both backends."""

    torch: TorchBackend
    llama: LlamaBackend


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family that llama.cpp runs."""
    return str(request.param)


@pytest.fixture(scope="module")
def pair(family: str, checkpoint: Any, gguf: Callable[..., Path]) -> Iterator[Pair]:
    """A family in float32 on both backends."""
    with (
        TorchBackend(checkpoint(family), device="cpu", token_budget=64) as torch,
        LlamaBackend(gguf(family), "gguf-f32", token_budget=64) as llama,
    ):
        yield Pair(torch, llama)


def traced(backend: Any) -> Float[np.ndarray, "n measure span p"]:
    """Every measure and span of the exchanges."""
    texts = tiny.exchanges()
    values = np.empty((len(texts), len(MEASURES), len(SPANS), len(backend.identity.space)))
    for batch in backend.trace(texts, MEASURES, SPANS):
        values[batch.rows] = batch.values
    return values


def tokens(backend: Any, flat: Any, measure: Any) -> Float[np.ndarray, "token k"]:
    """CETT of these neurons at every token of the exchanges."""
    found: dict[int, Any] = {}
    for batch in backend.read_tokens(tiny.exchanges(), flat, measure):
        found |= dict(zip(batch.rows, np.split(batch.values, batch.ends[:-1]), strict=True))
    return np.concatenate([found[row] for row in sorted(found)])


def logits(backend: Any) -> Float[np.ndarray, "token vocab"]:
    """Those of every response token of the exchanges."""
    found = dict(backend.logits(tiny.exchanges()))
    return np.concatenate([found[row] for row in sorted(found)])


FLAT = np.array([3, 40, 70, 125, tiny.D_FF + 5, tiny.D_FF + 100, 3 * tiny.D_FF - 1])
FACTORS = (0.0, 2.0, 0.5, 0.0, 0.0, 3.0, 0.0)


def test_the_file_is_the_checkpoint(pair: Pair) -> None:
    named = {"name": pair.torch.identity.name}
    assert pair.llama.identity.model_copy(update=named) == pair.torch.identity
    np.testing.assert_allclose(pair.llama.norms, pair.torch.norms, rtol=NORMS)


def test_traces_agree(pair: Pair) -> None:
    """Every measure and span; experts that a token is not routed to are zero in both."""
    expected, found = traced(pair.torch), traced(pair.llama)
    assert 0.05 < (expected == 0).mean() < 0.6
    np.testing.assert_array_equal(found == 0, expected == 0)
    for measure in range(len(MEASURES)):
        assert far(found[:, measure], expected[:, measure]) < CETT
    np.testing.assert_allclose(logits(pair.llama), logits(pair.torch), atol=LOGITS, rtol=0)


@pytest.mark.parametrize("measure", ["sum", "output"])
def test_readings_of_tokens_agree(pair: Pair, measure: str) -> None:
    expected = tokens(pair.torch, FLAT, measure)
    assert (expected == 0).any()
    np.testing.assert_allclose(tokens(pair.llama, FLAT, measure), expected, rtol=CETT, atol=1e-6)


def test_scaling_agrees(pair: Pair) -> None:
    """Of routed experts, and of the shared one: index 125 in Qwen2-MoE."""
    positions = pair.torch.identity.space.positions(FLAT)
    factors = dict(zip(positions, FACTORS, strict=True))
    plain = logits(pair.torch)
    with pair.torch.scale(factors), pair.llama.scale(factors):
        expected = logits(pair.torch)
        effect = np.abs(expected - plain).max()
        assert effect > 0.1
        assert np.abs(logits(pair.llama) - expected).max() < 1e-4 * effect
        assert far(traced(pair.llama), traced(pair.torch)) < CETT
        np.testing.assert_allclose(
            tokens(pair.llama, FLAT, "sum"), tokens(pair.torch, FLAT, "sum"), rtol=CETT, atol=1e-6
        )
    np.testing.assert_allclose(logits(pair.llama), plain, atol=LOGITS, rtol=0)


def test_scaling_experts_that_no_token_reaches_changes_no_bit(pair: Pair) -> None:
    text = PromptResponse((5,), (6,))
    (batch,) = pair.llama.trace([text], ("contribution",), ("answer", "prompt"))
    silent = np.flatnonzero((batch.values == 0).all(axis=(0, 1, 2)))
    assert len(silent) >= tiny.D_FF // 4
    plain = dict(pair.llama.logits([text]))[0]
    factors = dict.fromkeys(pair.llama.identity.space.positions(silent), 0.0)
    with pair.llama.scale(factors):
        np.testing.assert_array_equal(dict(pair.llama.logits([text]))[0], plain)


def test_copied_tensors_read_and_scale_as_tensors_in_place(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose memory the callback copies from and to."""
    factors = dict(zip(pair.llama.identity.space.positions(FLAT), FACTORS, strict=True))
    with pair.llama.scale(factors):
        expected = traced(pair.llama), tokens(pair.llama, FLAT, "output"), logits(pair.llama)
        monkeypatch.setattr(pair.llama.model, "on_host", False)
        found = traced(pair.llama), tokens(pair.llama, FLAT, "output"), logits(pair.llama)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def neuron_set(backend: Any, measure: Any) -> NeuronSet:
    """A set of the neurons FLAT."""
    neurons = tuple(
        Neuron(layer=layer, expert=expert, index=index, weight=1.0, mean=0, scale=1)
        for layer, expert, index in backend.identity.space.positions(FLAT)
    )
    return NeuronSet(
        model=backend.identity,
        cett=measure,
        tokens="answer",
        labels="1-vs-1",
        intercept=0,
        neurons=neurons,
    )


@pytest.mark.parametrize("measure", ["sum", "output"])
def test_a_monitor_reads_and_scales_experts(pair: Pair, measure: str) -> None:
    (text,) = tiny.exchanges(1)
    found = neuron_set(pair.llama, measure)
    with LlamaMonitor(pair.llama, found, tokens=64) as monitor:
        for alpha in (1.0, 0.5):
            with (
                monitor.scale(alpha),
                pair.torch.scale(dict.fromkeys([n.position for n in found.positive], alpha)),
            ):
                steps = list(monitor.follow(text.prompt, text.response))
                (batch,) = pair.torch.read_tokens([text], FLAT, measure)
            read = np.stack([step.cett for step in steps])
            np.testing.assert_allclose(read, batch.values[: len(read)], rtol=CETT, atol=1e-6)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
def test_neurons_of_a_quantized_file_are_those_of_the_checkpoint(
    family: str, checkpoint: Any, gguf: Callable[..., Path], kind: str
) -> None:
    """One map per block, each neuron at its own index."""
    file = GGUFFile(gguf(family, kind))
    maps = list(map_model(of_checkpoint(checkpoint(family)), file.ffns()))
    assert len(maps) == len(file.space.blocks)
    for one in maps:
        assert one.relation in ALIGNED
        np.testing.assert_array_equal(one.permutation, np.arange(len(one.permutation)))
    norms = np.concatenate([ffn.down.norm(dim=0).numpy() for ffn in file.ffns()])
    np.testing.assert_allclose(file.norms.ravel(), norms, rtol=1e-5)


def test_experts_that_change_places_are_named(checkpoint: Any, gguf: Callable[..., Path]) -> None:
    ffns = list(GGUFFile(gguf("olmoe")).ffns())
    ffns[0], ffns[1] = ffns[1], ffns[0]
    relations = [str(m.relation) for m in map_model(of_checkpoint(checkpoint("olmoe")), ffns)]
    assert relations[:2] == ["another", "another"]
    assert set(relations[2:]) == {"identical"}


def test_the_router_and_norms_stay_in_float32(family: str, gguf: Callable[..., Path]) -> None:
    tensors = GGUFFile(gguf(family, "q8_0")).tensors
    assert tensors["blk.0.ffn_gate_inp.weight"].type.name == "F32"
    assert tensors["blk.0.ffn_down_exps.weight"].type.name == "Q8_0"


# --- what is refused, in one sentence each


def test_factors_are_not_baked_into_experts(gguf: Callable[..., Path], tmp_path: Path) -> None:
    file = gguf("mixtral")
    with pytest.raises(HQError, match="mixture of experts, into which hq does not bake"):
        bake(file, tmp_path / "baked.gguf", {(0, 1, 2): 0.0})
    with pytest.raises(HQError, match="whose experts are no linear layers that an adapter"):
        write_gguf_adapter(GGUFFile(file), {(0, 1, 2): 0.0}, tmp_path / "adapter.gguf")
    assert not list(tmp_path.iterdir())


def test_a_server_has_no_name_for_experts(
    pair: Pair, family: str, gguf: Callable[..., Path], tmp_path: Path
) -> None:
    """A bundle of them is written and read; only the server's responses cannot name them."""
    from harness.serve.generation.model import ServedModel  # it needs the extra serve

    file = gguf(family)
    domains = {"all": Domain(threshold=0.0, false_alarms=0.1, n=30)}
    neurons = neuron_set(pair.llama, "sum")
    bundle = Bundle.load(bundles.save(tmp_path / "bundle", file, neurons, domains, "gguf-f32"))
    np.testing.assert_array_equal(bundle.norms, pair.llama.norms[FLAT])
    with pytest.raises(HQError, match="mixture of experts, and the server's responses name"):
        ServedModel(file, bundle, 64)


def test_a_file_of_experts_becomes_no_checkpoint(gguf: Callable[..., Path]) -> None:
    with pytest.raises(HQError, match=r"expert_count = 4, and hq makes no checkpoint of a mixture"):
        config_of(GGUFFile(gguf("qwen3_moe")))


def changed(source: Path, into: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other settings in its config."""
    shutil.copytree(source, into)
    config = json.loads((into / "config.json").read_text(encoding="utf-8"))
    (into / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return into


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("qwen2_moe", {}, "dense layers among its mixtures"),
        ("qwen2_moe-every", {"norm_topk_prob": True}, "norm_topk_prob = True"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob = True"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv = 8.0"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
        ("gpt_oss", {}, "'gpt_oss' cannot be written as GGUF"),
        ("mixtral", {"num_local_experts": 8}, "config.json says that it has 8"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_not_written(
    checkpoint: Any, tmp_path: Path, family: str, changes: dict[str, Any], words: str
) -> None:
    path = changed(checkpoint(family), tmp_path / "checkpoint", **changes)
    identity = checkpoint_identity(checkpoint(family))
    with pytest.raises(HQError, match=words):
        write_gguf(path, tmp_path / "model.gguf", "f32", identity)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]
