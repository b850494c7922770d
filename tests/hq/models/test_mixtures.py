"""Mixtures of experts, compared with loops over experts that are written out in NumPy."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.hooks import DownHooks
from hq.backends.transformers.loaded import LoadedBackend
from hq.backends.transformers.routing import routed_shares
from hq.errors import HQError
from hq.models.alignment import map_model
from hq.models.checkpoint import checkpoint_identity
from hq.models.ffn_weights import of_checkpoint
from hq.monitor.torch import TorchMonitor
from hq.neurons.cett import MEASURES, SPANS
from hq.neurons.features import Features
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.precisions import PRECISIONS
from hq.probe.identify import identify
from hq.suppress.bake import bake
from hq.suppress.lora.peft import write_peft_adapter
from tests import tiny
from tests.hq.models.test_architectures import far

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
NAMES = sorted(tiny.MIXTURES)


@pytest.fixture(scope="module", params=NAMES)
def path(request: pytest.FixtureRequest, checkpoint: Any) -> Path:
    """The tiny checkpoint of each family; read only."""
    folder: Path = checkpoint(request.param)
    return folder


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def backend(request: pytest.FixtureRequest, path: Path) -> Any:
    """A family with each implementation of experts."""
    with TorchBackend(path, device="cpu", token_budget=64) as opened:
        opened.model.set_experts_implementation(request.param)
        yield opened


def naive_layer(module: Any, x: Any) -> tuple[Any, Any]:
    """(contributions [token, neuron], output [token, d_model]) of one block, by loops over tokens.

    Routing is written out by family; matrices are products of single vectors.
    """
    mlp, config = module.mlp, module.mlp.experts.config
    kind, routed = config.model_type, module.mlp.experts
    router = mlp.router if kind == "gpt_oss" else mlp.gate
    contributions, outputs = [], []
    for token in x:
        logits = router.weight @ token + (router.bias if kind == "gpt_oss" else 0)
        weights = torch.zeros(len(logits))
        chosen = logits.topk(config.num_experts_per_tok).indices
        if kind in ("gpt_oss", "mixtral") or getattr(config, "norm_topk_prob", False):
            weights[chosen] = logits[chosen].softmax(0)  # normalised over the chosen ones
        else:
            weights[chosen] = logits.softmax(0)[chosen]
        blocks, y = [], torch.zeros_like(token)
        for expert, g in enumerate(weights):
            if kind == "gpt_oss":
                both = token @ routed.gate_up_proj[expert] + routed.gate_up_proj_bias[expert]
                gate, up = both[::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
                h, down = (up + 1) * gate * torch.sigmoid(1.702 * gate), routed.down_proj[expert].T
            else:
                gate, up = (routed.gate_up_proj[expert] @ token).chunk(2)
                h, down = silu(gate) * up, routed.down_proj[expert]
            blocks.append((g * h).abs() * down.norm(dim=0))
            y = y + g * (down @ h)
        if kind == "qwen2_moe":
            shared, g = mlp.shared_expert, torch.sigmoid(mlp.shared_expert_gate(token))
            h = silu(shared.gate_proj(token)) * shared.up_proj(token)
            blocks.append((g * h).abs() * shared.down_proj.weight.norm(dim=0))
            y = y + g * shared.down_proj(h)
        contributions.append(torch.cat(blocks))
        outputs.append(y)
    return torch.stack(contributions), torch.stack(outputs)


def naive(backend: TorchBackend, text: PromptResponse) -> Float[np.ndarray, "measure span p"]:
    """Every measure and span of one text; dense layers by the formulas of dense layers."""
    inputs: list[Any] = []
    layers: Any = backend.model.model.layers
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
        for layer in layers
    ]
    with torch.inference_mode():
        backend.model(torch.tensor([text.ids]))
        parts = []
        for layer, x in zip(layers, inputs, strict=True):
            if hasattr(layer.mlp, "experts"):
                contribution, output = naive_layer(layer, x)
            else:
                h = silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
                contribution = h.abs() * layer.mlp.down_proj.weight.norm(dim=0)
                output = layer.mlp.down_proj(h)
            total, norm = contribution.sum(1, keepdim=True), output.norm(dim=1, keepdim=True)
            parts.append(torch.stack([contribution / total, contribution / norm, contribution]))
    for handle in handles:
        handle.remove()
    values, start = torch.cat(parts, dim=-1), len(text.prompt)
    spans = [values[:, start:].mean(1), values[:, start - 1], values[:, :start].mean(1)]
    return torch.stack(spans, dim=1).numpy()


def test_traces_are_those_of_a_loop_over_experts(backend: TorchBackend) -> None:
    """Every measure and span, with a shared prefix and rows of several lengths."""
    texts = tiny.exchanges()
    for batch in backend.trace(texts, MEASURES, SPANS):
        for row, values in zip(batch.rows, batch.values, strict=True):
            expected = naive(backend, texts[row])
            for measure in range(len(MEASURES)):
                assert far(values[measure], expected[measure]) < 1e-5


def test_experts_that_are_not_routed_count_zero(backend: TorchBackend) -> None:
    (batch,) = backend.trace(tiny.exchanges(1), ("contribution",), ("prompt",))
    space, config = backend.identity.space, backend.model.config
    silent = [
        (values == 0).all() for values in (batch.values[0, 0, 0, block] for block in space.slices)
    ]
    experts = [b.expert is not None for b in space.blocks]
    assert not any(s for s, e in zip(silent, experts, strict=True) if not e)
    per_layer = sum(e for b, e in zip(space.blocks, experts, strict=True) if b.layer == 0)
    shared = int(config.model_type == "qwen2_moe")
    routed = per_layer - shared
    mixed = len({b.layer for b in space.blocks if b.expert is not None})
    assert sum(silent) == mixed * (routed - config.num_experts_per_tok)


def edited(backend: TorchBackend, factors: Any, ids: Any) -> Any:
    """Logits after columns of W_down are multiplied by α: the definition of scaling."""
    model = copy.deepcopy(backend.model)
    layers = model.model.layers
    for (layer, *expert, index), alpha in factors.items():
        mlp = layers[layer].mlp
        if not expert:
            mlp.down_proj.weight[:, index] *= alpha
        elif expert[0] == len(mlp.experts.down_proj):
            mlp.shared_expert.down_proj.weight[:, index] *= alpha
        elif mlp.experts.is_transposed:
            mlp.experts.down_proj[expert[0]][index] *= alpha
        else:
            mlp.experts.down_proj[expert[0]][:, index] *= alpha
    with torch.inference_mode():
        return model(ids).logits


def test_scaling_is_scaling_of_columns(backend: TorchBackend) -> None:
    space = backend.identity.space
    chosen = [3, 40, 70, 125, tiny.D_FF + 5, tiny.D_FF + 100, 2 * tiny.D_FF + 127]
    factors = dict(zip(space.positions(chosen), [0.0, 2.0, 0.5, 0, 0, 3.0, 0], strict=True))
    ids = torch.randint(5, tiny.VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = backend.model(ids).logits
        with backend.scale(factors):
            scaled = backend.model(ids).logits
        assert torch.equal(backend.model(ids).logits, plain)
    expected = edited(backend, factors, ids)
    effect = (expected - plain).abs().max()
    assert effect > 1e-3
    assert (scaled - expected).abs().max() < 1e-4 * effect


def test_reading_changes_no_bit(backend: TorchBackend) -> None:
    """The model runs its own implementation while it is read."""
    (text,) = tiny.exchanges(1)
    ids, norms = torch.tensor([text.ids]), map(backend.norms_of, range(tiny.LAYERS))
    hooks = DownHooks(backend.downs, list(norms), MEASURES)
    with torch.inference_mode():
        plain = backend.decoder(ids).last_hidden_state
        hooks.expect(torch.ones(1, 1, len(text)))
        with hooks:
            read = backend.decoder(ids).last_hidden_state
        assert hooks.collect().shape == (1, len(MEASURES), 1, tiny.LAYERS * tiny.D_FF)
    assert torch.equal(read, plain)


def test_an_implementation_that_computes_something_else_is_named(path: Path) -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    def halved(self: Any, x: Any, experts: Any, weights: Any) -> Any:
        return ALL_EXPERTS_FUNCTIONS["batched_mm"](self, x, experts, weights) / 2

    ALL_EXPERTS_FUNCTIONS.register("halved", halved)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="halved")
        with pytest.raises(HQError, match="experts_implementation='halved': its output is off"):
            LoadedBackend(model.eval())
    finally:
        ALL_EXPERTS_FUNCTIONS._global_mapping.pop("halved", None)
        ALL_EXPERTS_FUNCTIONS._local_mapping.pop("halved", None)


def test_the_weights_on_disk_are_those_of_the_loaded_model(path: Path) -> None:
    """One FFN per block, in the order of the neurons."""
    with TorchBackend(path, device="cpu") as backend:
        blocks = list(map_model(of_checkpoint(path), backend.ffns()))
        widths = tuple(len(block.permutation) for block in blocks)
        norms = torch.cat([ffn.down.norm(dim=0) for ffn in backend.ffns()])
        assert far(norms.numpy(), backend.norms) < 1e-6
        assert widths == backend.identity.space.widths
    assert {str(block.relation) for block in blocks} == {"identical"}


@pytest.mark.parametrize("more", [-1, 4])
def test_another_number_of_experts_than_the_config_says_is_named(
    path: Path, tmp_path: Path, more: int
) -> None:
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    keys = [k for k in ("num_experts", "num_local_experts") if k in config]
    held = config[keys[0]]
    other = config | dict.fromkeys(keys, held + more)
    (tmp_path / "config.json").write_text(json.dumps(other), encoding="utf-8")
    words = f"has {held} experts, but config.json says that it has {held + more}"
    for opened in (checkpoint_identity, TorchBackend):
        with pytest.raises(HQError, match=words):
            opened(tmp_path)


@pytest.mark.parametrize("name", ["fp8", "nvfp4", "mxfp4"])
def test_small_floats_round_the_experts_too(path: Path, name: str) -> None:
    with TorchBackend(path, device="cpu") as plain, TorchBackend(path, name, "cpu") as rounded:
        (row,) = [r for r in rounded.audit() if "Experts" in r.module]
        assert row.bits_per_weight < 9
        for before, after in zip(plain.ffns(), rounded.ffns(), strict=True):
            expected = PRECISIONS[name].layer(before.down).weight
            torch.testing.assert_close(after.down, expected, rtol=1e-6, atol=1e-7)
        assert rounded.weight_bytes() < 0.75 * plain.weight_bytes()


@pytest.mark.parametrize(
    "name",
    ["int8", "nf4", "nf4-dq", "fp4", "torchao-int8", "torchao-int4", "hqq-4", "gptq-4", "awq-4"],
)
def test_precisions_that_would_leave_experts_unquantized_are_refused(path: Path, name: str) -> None:
    with pytest.raises(HQError, match=rf"^{name} would leave the experts of .* unquantized") as e:
        TorchBackend(path, name, "cpu")
    assert str(e.value).endswith("use fp16, bf16, fp8, nvfp4 or mxfp4.")


_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
_PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
_BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize(
    ("config", "precision", "words"),
    [
        (_AWQ, "awq-4", r"quantized already \(awq\), and hq does not read packed experts"),
        (_PACKED, "compressed-4", r"already \(compressed-tensors\), and hq does not read packed"),
        (_BITSANDBYTES, "nf4", r"already \(bitsandbytes\), and hq does not read packed experts"),
        (_AWQ, "fp16", r"is quantized already \(awq\), so it does not run as fp16"),
        ({"quant_method": "mxfp4"}, "fp16", r"already \(mxfp4\), .* fp16: name its source"),
        ({"quant_method": "mxfp4"}, "mxfp4", r"already \(mxfp4\), .* mxfp4: name its source"),
    ],
)
def test_checkpoints_of_packed_experts_are_refused(
    path: Path, tmp_path: Path, config: dict[str, Any], precision: str, words: str
) -> None:
    """gpt-oss in MXFP4 among them; before any weight is read."""
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stated = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps(stated | {"quantization_config": config}), encoding="utf-8"
    )
    with pytest.raises(HQError, match=words):
        TorchBackend(tmp_path, precision, "cpu")


def test_routed_shares_count_the_tokens_that_reach_an_expert(backend: TorchBackend) -> None:
    texts = tiny.exchanges()
    shares, space = routed_shares(backend, texts), backend.identity.space
    tokens = [  # each token of an answer as an answer of its own
        PromptResponse(e.prompt + e.response[:t], (e.response[t],))
        for e in texts
        for t in range(len(e.response))
    ]
    alone = np.zeros((len(tokens), len(space.blocks)))
    for batch in backend.trace(tokens, ("contribution",)):
        for number, block in enumerate(space.slices):
            alone[batch.rows, number] = (batch.values[:, 0, 0, block] > 0).any(axis=1)
    ends = np.cumsum([len(e.response) for e in texts])[:-1]
    expected = [part.mean(axis=0) for part in np.split(alone, ends)]
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    assert 0 < shares.mean() < 1


def test_identification_says_how_many_responses_reach_each_expert(path: Path) -> None:
    texts = tiny.exchanges(60, seed=3)
    with TorchBackend(path, device="cpu", token_budget=512) as backend:
        space = backend.identity.space
        values = np.empty((len(texts), len(space)), dtype=np.float32)
        for batch in backend.trace(texts):
            values[batch.rows] = batch.values[:, 0, 0]
        features = Features(values, "sum", "answer", backend.identity, "fp16")
    reached = (values != 0).mean(axis=0)
    planted = int(np.argmin(np.where(reached > 0.3, reached, 1)))
    labels = np.isin(np.arange(60), np.argsort(values[:, planted])[-30:]).astype(int)
    found = identify(features, labels, max_fraction=0.02, folds=3)
    rare = 0
    for neuron, flat in zip(found.neurons, found.flat, strict=True):
        assert neuron.position == space.positions(flat)[0]
        if neuron.expert is None:
            assert neuron.routed is None
            continue
        assert neuron.routed == pytest.approx(reached[flat])
        rare += min(((values[:, flat] != 0) & (labels == y)).sum() for y in (0, 1)) < 10
    assert found.provenance["rarely_routed"] == rare
    assert NeuronSet.model_validate_json(found.model_dump_json()) == found


def test_what_experts_cannot_do_is_said_in_a_sentence(path: Path, tmp_path: Path) -> None:
    factors = {(0, 1, 2): 0.0}
    with pytest.raises(HQError, match="mixture of experts, into which hq does not bake"):
        bake(path, tmp_path / "baked", factors)
    with pytest.raises(HQError, match="whose experts are no linear layers that an adapter"):
        write_peft_adapter(path, checkpoint_identity(path), factors, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_model_that_bitsandbytes_quantized_without_its_experts_is_refused(
    checkpoint: Any, family: str
) -> None:
    """It leaves them as they are, without a warning."""
    quantized = AutoModelForCausalLM.from_pretrained(
        checkpoint(family), quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    assert quantized.model.layers[0].mlp.experts.down_proj.is_floating_point()
    with pytest.raises(HQError, match=r"bitsandbytes \(fp4\) without its experts, .* weights"):
        LoadedBackend(quantized.eval())


def test_a_monitor_reads_and_scales_experts(path: Path) -> None:
    with TorchBackend(path, device="cpu") as backend:
        text, space = tiny.exchanges(1)[0], backend.identity.space
        flat = np.array([3, 40, 70, 127, tiny.D_FF + 100, 3 * tiny.D_FF - 1])
        neurons = tuple(
            Neuron(
                layer=p[0],
                expert=p[1] if len(p) == 3 else None,
                index=p[-1],
                weight=1.0,
                mean=0,
                scale=1,
            )
            for p in space.positions(flat)
        )
        found = NeuronSet(
            model=backend.identity,
            cett="output",
            tokens="answer",
            labels="1-vs-1",
            intercept=0,
            neurons=neurons,
        )
        monitor = TorchMonitor(backend.model, found)  # known by its norms
        steps = list(monitor.follow(text.prompt, text.response))
        for alpha in (1.0, 0.5):
            with monitor.scale(alpha):
                steps = list(monitor.follow(text.prompt, text.response))
                (batch,) = backend.read_tokens([text], flat, "output")
            read = np.stack([step.cett for step in steps])
            np.testing.assert_allclose(read, batch.values[: len(read)], rtol=1e-4, atol=1e-7)
        assert (read == 0).any()
        assert (read > 0).any()
