"""Compiled code calls no hooks: neurons of a compiled model are neither read nor scaled."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.checkpoint import identity
from hq.monitor import TorchMonitor
from hq.neurons.neuron_set import NeuronSet
from tests import tiny
from tests.hq.monitored import PROMPT, asked, load, neuron_set

Checkpoint = Callable[[str], Path]
IDS = torch.tensor([PROMPT])
LAYER = 2  # the set has neurons in layers 0 and 2


@pytest.fixture(autouse=True)
def _compiled_afresh() -> Iterator[None]:
    """No compiled code outlives a test."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def model(checkpoint: Checkpoint) -> Any:
    """The tiny llama, to be compiled."""
    return load(checkpoint("llama"))


@pytest.fixture
def neurons(checkpoint: Checkpoint) -> NeuronSet:
    """A set of the tiny llama."""
    return neuron_set(identity(checkpoint("llama")))


def compiled(target: Any) -> Any:
    return torch.compile(target, backend="eager")


def whole(model: Any) -> Any:
    return compiled(model)


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def forward(model: Any) -> Any:
    model.forward = compiled(model.forward)
    return model


def decoder(model: Any) -> Any:
    model.model = compiled(model.model)
    return model


def layer(model: Any) -> Any:
    model.model.layers[LAYER] = compiled(model.model.layers[LAYER])
    return model


def layer_in_place(model: Any) -> Any:
    model.model.layers[LAYER].compile(backend="eager")
    return model


def mlp_forward(model: Any) -> Any:
    mlp = model.model.layers[LAYER].mlp
    mlp.forward = compiled(mlp.forward)
    return model


def traced_mlp(model: Any) -> Any:
    mlp = model.model.layers[LAYER].mlp
    mlp.down_proj = torch.jit.trace(mlp.down_proj, torch.zeros(1, 1, tiny.D_FF))
    return model


# Whether each ran before: tracing takes seconds.
COMPILED = {
    whole: True,
    in_place: False,
    forward: False,
    layer: True,
    decoder: False,
    layer_in_place: False,
    mlp_forward: False,
    traced_mlp: False,
}


def run(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(("compile", "ran"), COMPILED.items())
def test_a_compiled_model_is_not_scaled(model, neurons, compile, ran):
    monitor = TorchMonitor(model, neurons)
    changed = compile(model)
    if ran:
        run(changed)
    watched = monitor
    if changed is not model:
        watched = TorchMonitor(changed, neurons)
    with pytest.raises(HQError, match=r"is compiled|was not called"), watched.scale(30):
        run(changed)
    with watched, pytest.raises(HQError, match=r"is compiled|was not called"):
        changed.generate(**asked(PROMPT))


def test_a_wrapper_that_ran_before_is_noticed_at_the_end(model, neurons):
    """The model that is scaled is as it was; what runs is code that was compiled from it."""
    monitor, wrapper = TorchMonitor(model, neurons), compiled(model)
    before = run(wrapper)
    with pytest.raises(HQError, match="Nothing was scaled"), monitor.scale(30):
        torch.testing.assert_close(run(wrapper), before)
    with monitor.scale(30):  # the model itself is scaled all the same
        assert (run(model) - before).abs().max() > 1e-3
    with pytest.raises(KeyError), monitor.scale(30):  # another error comes first
        raise KeyError


def test_other_parts_may_be_compiled(model, neurons):
    """Layer 1 has no neuron of the set, and attention none at all."""
    expected = run(model)
    attention = model.model.layers[LAYER].self_attn
    attention.forward = compiled(attention.forward)
    model.model.layers[1].compile(backend="eager")
    torch.testing.assert_close(run(model), expected)
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT))
        assert len(monitor.steps) == 8
        with monitor.scale(30):
            assert (run(model) - expected).abs().max() > 1e-3


def test_what_is_kept_from_the_compiler_is_not_compiled(model, neurons):
    layer = model.model.layers[LAYER]
    layer.forward = torch.compiler.disable(layer.forward)
    with TorchMonitor(model, neurons).scale(30):
        run(model)


class Fused(nn.Module):
    """An FFN that multiplies by the weights without calling the down projection."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.down_proj, self.mlp = mlp.down_proj, mlp

    def forward(self, x: Any) -> Any:
        h = self.mlp.act_fn(self.mlp.gate_proj(x)) * self.mlp.up_proj(x)
        return nn.functional.linear(h, self.down_proj.weight)


def test_a_kernel_that_bypasses_the_projection_is_noticed(model, neurons):
    model.model.layers[LAYER].mlp = Fused(model.model.layers[LAYER].mlp)
    monitor = TorchMonitor(model, neurons)
    with pytest.raises(HQError, match="layer 2 was not called"), monitor.scale(30):
        run(model)
    with monitor, pytest.raises(HQError, match="layer 2 was not called"):
        model.generate(**asked(PROMPT))


STATIC = {
    "cache_implementation": "static",
    "compile_config": hf.CompileConfig(backend="eager", fullgraph=False),
}
STATIC["compile_config"]._compile_all_devices = True  # as on a GPU


@pytest.mark.parametrize("earlier", [True, False])
def test_decoding_that_generate_compiles_is_refused(model, neurons, earlier):
    if earlier:
        model.generate(**asked(PROMPT, **STATIC))
    monitor = TorchMonitor(model, neurons)
    with monitor, pytest.raises(HQError, match="disable_compile=True"):
        model.generate(**asked(PROMPT, **STATIC))
    with pytest.raises(HQError, match="disable_compile=True"), monitor.scale(30):
        model.generate(**asked(PROMPT, **STATIC))
    with monitor, monitor.scale(30):
        model.generate(**asked(PROMPT, **STATIC, disable_compile=True))
    assert len(monitor.steps) == 8
    assert "get_compiled_call" not in vars(model)


@pytest.mark.parametrize("compile", [in_place, mlp_forward])
def test_a_backend_s_compiled_model_is_refused(checkpoint, compile):
    with TorchBackend(checkpoint("llama"), device="cpu") as backend:
        exchanges = tiny.exchanges(2, shared=0)
        list(backend.trace(exchanges))
        compile(backend.model)
        with pytest.raises(HQError, match="is compiled"), backend.scale({(LAYER, 3): 0.0}):
            pass
        with pytest.raises(HQError, match="is compiled"):
            list(backend.trace(exchanges))


def test_a_trace_needs_every_layer_once(checkpoint):
    with TorchBackend(checkpoint("llama"), device="cpu") as backend:
        layers = backend.decoder.layers
        layers[1].mlp = Fused(layers[1].mlp)
        with pytest.raises(HQError, match="layer 1 was not called"):
            list(backend.trace(tiny.exchanges(2)))
