"""A model in memory: who it is, by its norms, and which weights can be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hq.backends.transformers.loaded import loaded_identity
from hq.errors import HQError
from hq.models.checkpoint import identity
from hq.monitor import TorchMonitor
from hq.neurons.neuron_set import NeuronSet
from tests import tiny
from tests.hq.monitored import PROMPT, asked, load, neuron_set

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Any:
    """The tiny llama."""
    return load(checkpoint("llama"))


@pytest.fixture
def neurons(checkpoint: Checkpoint) -> NeuronSet:
    """A set of the tiny llama."""
    return neuron_set(identity(checkpoint("llama")))


def test_a_loaded_model_is_known_by_its_norms(family, checkpoint):
    folder = checkpoint(family)
    if family == "opt":
        with pytest.raises(HQError, match=r"model_identity=hq\.models\.checkpoint\.identity"):
            loaded_identity(load(folder))
        return
    source, found = identity(folder), loaded_identity(load(folder))
    same = ("architecture", "n_layers", "d_ff", "kin")
    assert [getattr(found, field) for field in same] == [getattr(source, field) for field in same]
    assert found.fingerprint == f"loaded:{source.kin}"
    neuron_set(source).require(found)


def test_a_set_of_a_gguf_file_is_one_of_the_loaded_model(model, gguf):
    from hq.gguf.file import GGUFFile

    unknown = GGUFFile(gguf("llama")).identity.model_copy(update={"fingerprint": "gguf:1234"})
    TorchMonitor(model, neuron_set(unknown))


def test_a_set_of_another_model_is_refused(model, neurons, checkpoint, tmp_path):
    other = identity(tiny.save("llama", tmp_path / "other", seed=1))
    with pytest.raises(HQError, match=r"belongs to other \(kin .*, not to llama"):
        TorchMonitor(model, neuron_set(other))
    nameless = neurons.model.model_copy(update={"kin": ""})
    with pytest.raises(HQError, match="belongs to"):
        TorchMonitor(model, neuron_set(nameless))
    wider = neurons.model.model_copy(update={"d_ff": 256})
    with pytest.raises(HQError, match=r"d_ff 256"):
        TorchMonitor(model, neuron_set(wider))
    with pytest.raises(HQError, match=r"fingerprint"):
        TorchMonitor(model, neurons, other)


def test_weights_in_a_type_that_rounds_are_another_model_s(checkpoint, neurons):
    rounded = load(checkpoint("llama"), dtype=torch.bfloat16)
    with pytest.raises(HQError, match="load its weights in the type they are stored in"):
        TorchMonitor(rounded, neurons)
    half = load(checkpoint("llama"), dtype=torch.float16)
    with TorchMonitor(half, neurons) as monitor:
        half.generate(**asked(PROMPT))
    assert len(monitor.steps) == 8


def test_an_empty_set_is_refused(model, neurons):
    with pytest.raises(HQError, match="is empty"):
        TorchMonitor(model, neurons.model_copy(update={"neurons": ()}))


class Strange(nn.Linear):
    """Some library's own linear, whose weight may mean anything."""


def test_weights_that_hq_cannot_read_are_refused(checkpoint, neurons):
    model = load(checkpoint("llama"))
    with torch.device("meta"):
        offloaded = nn.Linear(tiny.D_FF, 64, bias=False)
    for replaced in (Strange(tiny.D_FF, 64, bias=False), offloaded):
        model.model.layers[2].mlp.down_proj = replaced
        with pytest.raises(
            HQError, match=r"weights of .*\.(Linear|Strange), the down projection of layer 2"
        ):
            TorchMonitor(model, neurons)


def test_a_norm_that_is_not_in_memory_is_no_kin(checkpoint):
    model = load(checkpoint("llama"))
    model.model.norm.weight = nn.Parameter(torch.empty(64, device="meta"))
    with pytest.raises(HQError, match="cannot be recognised"):
        loaded_identity(model)
