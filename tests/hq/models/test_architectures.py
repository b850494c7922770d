"""Every architecture: its record compared with detection, and its traces compared with NumPy."""

import ast
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import nn
from transformers.pytorch_utils import Conv1D

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.alignment import map_model
from hq.models.architectures import GGUF_LAYOUTS, RECORDS, architecture_of, down_projections
from hq.models.architectures.detection import detect, verify_detection
from hq.models.architectures.table import DETECTED_TYPES, WRAPPERS
from hq.models.checkpoint import architecture_at, checkpoint_identity
from hq.models.ffn_weights import of_checkpoint
from hq.neurons.prompt_response import PromptResponse
from hq.suppress.bake import bake
from hq.suppress.lora.peft import write_peft_adapter as write_adapter
from tests import decoders, tiny

ALL = decoders.RECORDED | decoders.DETECTED
# ALiBi without a record, keys shared between layers, no norm before the FFN, and wrappers.
FAST = ("falcon-alibi", "gemma3n_text", "mistral3", "olmo2", "paligemma2")
SWEEP = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in sorted(ALL)]
PATHS = ("layers", "down", "up", "gate", "norm", "norm_offset", "fused", "transposed")


def test_every_known_type_has_a_tiny_model():
    recorded = decoders.RECORDED | decoders.MIXTURES
    made = {name: config() for name, config in recorded.items()}
    assert {config.get_text_config().model_type for config in made.values()} == {*RECORDS}
    wrappers = {c.model_type for c in made.values() if c.get_text_config() is not c}
    assert wrappers == {*WRAPPERS}
    detected = {config().model_type for config in decoders.DETECTED.values()}
    assert detected == {*DETECTED_TYPES}


@pytest.mark.parametrize("name", sorted(decoders.RECORDED))
def test_a_record_is_what_detection_finds(name):
    config = decoders.RECORDED[name]()
    record, found = architecture_of(config), detect(config)
    assert not record.detected
    assert found.detected
    assert [getattr(record, p) for p in PATHS] == [getattr(found, p) for p in PATHS]
    assert record.space(config.get_text_config()) == found.space(config.get_text_config())


@pytest.mark.parametrize("name", sorted(decoders.REJECTED))
def test_models_without_identifiable_neurons_are_rejected_in_a_sentence(name):
    config, words = decoders.REJECTED[name]
    with pytest.raises(HQError, match=rf"(?s)^(?!.*families\.py).*{words}") as fault:
        architecture_of(config())
    assert name.removesuffix("_text") in str(fault.value)
    assert "\n" not in str(fault.value)


def test_layers_come_in_the_order_in_which_they_run():
    for name in FAST:
        model = decoders.model(ALL[name]())
        downs = down_projections(model.get_decoder(), architecture_of(model.config))
        ran: list[nn.Module] = []
        for down in downs:
            down.register_forward_hook(lambda module, *_, ran=ran: ran.append(module))
        with torch.inference_mode():
            model(torch.tensor([[5, 6, 7]]))
        assert ran == downs, name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny checkpoint of an architecture; read only."""
    root = tmp_path_factory.mktemp("architectures")

    def of(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else decoders.save(ALL[name](), folder)

    return of


@pytest.mark.parametrize("name", SWEEP)
def test_traces_logits_and_decoding_are_those_of_a_plain_forward_pass(name, saved):
    """With a shared prefix and prompts of several lengths; CETT written out in NumPy."""
    exchanges = tiny.exchanges()
    with TorchBackend(saved(name), device="cpu", token_budget=64) as backend:
        assert backend.identity.n_layers == len(backend.downs)
        traced = {
            int(row): values[0, 0]
            for batch in backend.trace(exchanges)
            for row, values in zip(batch.rows, batch.values, strict=True)
        }
        logits = dict(backend.logits(exchanges))
        decoding = backend.decoding()
        first = decoding.start([e.prompt for e in exchanges])
        second = decoding.step(
            np.arange(len(exchanges)), np.array([e.response[0] for e in exchanges])
        )
        for row, exchange in enumerate(exchanges):
            expected = naive_cett(backend, exchange)
            assert far(traced[row], expected) < 2e-6
            with torch.inference_mode():
                plain = backend.model(torch.tensor([exchange.ids])).logits[0].numpy()
            start = len(exchange.prompt)
            assert far(logits[row], plain[start - 1 : -1]) < 2e-5
            assert far(first[row].numpy(), plain[start - 1]) < 2e-5
            assert far(second[row].numpy(), plain[start]) < 2e-5


def far(found: Float[np.ndarray, "..."], expected: Float[np.ndarray, "..."]) -> float:
    """Return the largest difference relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def naive_cett(backend: TorchBackend, exchange: PromptResponse) -> Float[np.ndarray, " p"]:
    """CETT `sum` over the answer, in float64, from the inputs of the down projections."""
    model = backend.model
    pattern = architecture_of(model.config)
    seen: list[tuple[Any, Any]] = []

    def note(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        seen.append((weight.double().numpy(), args[0].double().numpy().reshape(len(exchange), -1)))

    downs = down_projections(model.get_decoder(), pattern)
    handles = [down.register_forward_pre_hook(note) for down in downs]
    with torch.inference_mode():
        model(torch.tensor([exchange.ids]))
    for handle in handles:
        handle.remove()
    layers = []
    for weight, h in seen:
        contribution = np.abs(h) * np.linalg.norm(weight, axis=0)
        shares = contribution / contribution.sum(axis=1, keepdims=True)
        layers.append(shares[len(exchange.prompt) :].mean(axis=0))
    return np.concatenate(layers)


@pytest.mark.parametrize("name", SWEEP)
def test_the_weights_on_disk_are_those_of_the_loaded_model(name, saved):
    with TorchBackend(saved(name), device="cpu") as backend:
        layers = list(map_model(of_checkpoint(saved(name)), backend.ffns()))
    assert [str(layer.relation) for layer in layers] == ["identical"] * len(layers)


@pytest.mark.parametrize("name", ["olmo2", "mistral3"])
def test_others_are_read_at_four_bits(name, saved):
    with TorchBackend(saved(name), "nf4", device="cpu") as backend:
        (batch, *_) = backend.trace(tiny.exchanges(2))
    assert np.isfinite(batch.values).all()


def test_a_projection_that_bitsandbytes_does_not_replace_is_rejected(saved):
    with pytest.raises(HQError, match="12 of 12 projections are not nf4"):
        TorchBackend(saved("falcon-alibi"), "nf4", device="cpu")


def test_an_architecture_without_a_record_is_announced_once(caplog):
    config = decoders.DETECTED["granitemoehybrid"]()
    config.hidden_size = 96  # a config that no other test detects
    with caplog.at_level(logging.WARNING, "hq"):
        architecture_of(config)
        architecture_of(config)
    (record,) = [r.getMessage() for r in caplog.records if "granitemoehybrid" in r.getMessage()]
    assert "no record" in record
    assert "layers.*.shared_mlp.output_linear, 3 layers of 128 neurons" in record


def test_a_detected_checkpoint_has_the_width_that_was_found(saved):
    assert architecture_at(saved("gpt_neox_japanese")).detected
    width = checkpoint_identity(saved("gpt_neox_japanese")).d_ff
    assert width == 2 * 64  # no attribute of the config has this value


class Halving(nn.Linear):
    """A projection that does not only multiply by its weight."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return super().forward(h) / 2


def test_verification_finds_what_detection_cannot_see():
    def dense(module: Any) -> torch.Tensor:
        return module.weight

    model: Any = decoders.model(decoders.RECORDED["llama"]()).requires_grad_(False)
    downs = down_projections(model.get_decoder(), RECORDS["llama"])
    verify_detection(model, downs, dense, torch.device("cpu"))
    downs[1].__class__ = Halving
    with pytest.raises(HQError, match="layer 1 does not write its weight times h"):
        verify_detection(model, downs, dense, torch.device("cpu"))
    downs[1].__class__ = nn.Linear
    model.model.layers[0].register_forward_hook(_mix_all_tokens)
    with pytest.raises(HQError, match="layer 1 depends on later tokens"):
        verify_detection(model, downs, dense, torch.device("cpu"))


def _mix_all_tokens(_: nn.Module, __: Any, made: Any) -> Any:
    hidden = made[0] if isinstance(made, tuple) else made
    mixed = hidden + hidden.mean(dim=1, keepdim=True)
    return (mixed, *made[1:]) if isinstance(made, tuple) else mixed


FEW = ("bitnet", "falcon-alibi", "glm4", "mistral3")  # columns, detected, fused rows, a wrapper
SCALED = [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in sorted(ALL)]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize("name", SCALED)
def test_baking_and_adapters_do_what_scaling_at_run_time_does(name, saved, tmp_path):
    peft = pytest.importorskip("peft")
    source, factors = saved(name), {(0, 3): 2.0, (0, 40): 2.0, (2, 7): 2.0}
    bake(source, tmp_path / "baked", factors)
    readable = not name.startswith("deepseek")
    if readable:
        write_adapter(source, checkpoint_identity(source), factors, tmp_path / "adapter")
    else:
        with pytest.raises(HQError, match="PEFT treats down projections as experts"):
            write_adapter(source, checkpoint_identity(source), factors, tmp_path / "adapter")
    ids = torch.randint(5, tiny.VOCABULARY, (1, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), TorchBackend(source, device="cpu") as backend:
        plain = backend.model(ids).logits
        with backend.scale(factors):
            expected = backend.model(ids).logits
        effect = (expected - plain).abs().max()
        if readable:
            adapted = peft.PeftModel.from_pretrained(backend.model, tmp_path / "adapter")
            assert (adapted(ids).logits - expected).abs().max() < 1e-3 * effect
    with torch.inference_mode(), TorchBackend(tmp_path / "baked", device="cpu") as baked:
        assert (baked.model(ids).logits - expected).abs().max() < 1e-3 * effect


PACKAGES = [Path(__file__).parents[3] / name for name in ("hq", "harness")]
# Also kinds of tokenizers in GGUF files and an extra, and a licence on the hub.
AMBIGUOUS = {"llama", "gpt2", "gemma"}


def test_no_other_file_names_an_architecture():
    """A family is one file: what is specific to an architecture is in its record."""
    families = PACKAGES[0] / "models" / "architectures"
    names = {*RECORDS, *GGUF_LAYOUTS} - AMBIGUOUS
    files = [file for package in PACKAGES for file in package.rglob("*.py")]
    for file in (file for file in files if families not in file.parents):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        assert not constants & names, file
