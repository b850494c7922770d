"""A model with permuted, pruned and copied neurons, traced and scaled like its source."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from harness.experiments.detect.compare import alignment
from harness.stages import mapping
from harness.store.progress import Progress
from hq.backends.permuted import PermutedBackend
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.alignment import MISSING, map_model
from hq.models.ffn_weights import FFN, of_checkpoint
from hq.neurons.neuron_set import NeuronSet
from hq.neurons.space import NeuronSpace
from hq.tracing.traces import Traces, TraceWriter, describe
from tests import tiny
from tests.hq.monitored import neuron_set

Checkpoint = Callable[[str], Path]
LAYER, PRUNED, MOVED = 1, 106, 89
MEASURES = ("sum", "contribution")


def change(backend: TorchBackend, order: torch.Tensor, pruned: list[int]) -> None:
    """Prune neurons of a layer, and move its neuron order[i] to index i."""
    mlp = backend.decoder.layers[LAYER].mlp
    with torch.no_grad():
        mlp.down_proj.weight[:, pruned] = 0
        for rows in (mlp.gate_proj, mlp.up_proj):
            rows.weight[pruned] = 0
            rows.weight.copy_(rows.weight[order].clone())
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order].clone())


@pytest.fixture(scope="module")
def source(checkpoint: Checkpoint) -> Iterator[TorchBackend]:
    """The tiny llama with one pruned neuron."""
    with TorchBackend(checkpoint("llama"), device="cpu") as backend:
        change(backend, torch.arange(tiny.D_FF), [PRUNED])
        yield backend


@pytest.fixture(scope="module")
def inner(checkpoint: Checkpoint) -> Iterator[TorchBackend]:
    """The same with neuron MOVED at the index of the pruned one, and the others permuted."""
    order = torch.randperm(tiny.D_FF, generator=torch.Generator().manual_seed(0))
    at = int((order == MOVED).nonzero())
    order[[at, PRUNED]] = order[[PRUNED, at]]
    with TorchBackend(checkpoint("llama"), device="cpu") as backend:
        change(backend, order, [PRUNED])
        yield backend


@pytest.fixture(scope="module")
def folder(
    inner: TorchBackend, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output folder of the stage for it."""
    made = tmp_path_factory.mktemp("map")
    with Progress(quiet=True) as progress, progress.task("map", tiny.LAYERS, "layers") as task:
        mapping.build(
            made, inner.identity.space, of_checkpoint(checkpoint("llama")), inner.ffns(), task
        )
    return made


@pytest.fixture(scope="module")
def mapped(inner: TorchBackend, folder: Path) -> PermutedBackend:
    """The permuted model with the indices of its source."""
    return mapping.mapped(folder, inner)


def values(backend: TorchBackend | PermutedBackend) -> np.ndarray:
    exchanges = tiny.exchanges(4)
    found = np.empty((4, 2, 1, tiny.LAYERS, tiny.D_FF), dtype=np.float32)
    for batch in backend.trace(exchanges, MEASURES):
        found[batch.rows] = batch.values.reshape(-1, *found.shape[1:])
    return found


def logits(backend: TorchBackend | PermutedBackend) -> np.ndarray:
    (found,) = (rows for _, rows in backend.logits(tiny.exchanges(1)))
    return found


def test_moved_neurons_read_as_at_home_and_the_pruned_one_as_nothing(source, inner, mapped):
    there, here = values(source), values(mapped)
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-7)
    assert not here[..., LAYER, PRUNED].any()
    assert values(inner)[..., LAYER, PRUNED].any()  # where another neuron is
    np.testing.assert_allclose(mapped.norms, source.norms, rtol=1e-6)
    assert mapped.missing == mapped.unmatched == {LAYER * tiny.D_FF + PRUNED}


def test_scaling_reaches_the_neuron_that_is_meant_or_none(source, inner, mapped):
    with source.scale({(LAYER, MOVED): 2.0}), mapped.scale({(LAYER, MOVED): 2.0}):
        np.testing.assert_allclose(logits(mapped), logits(source), rtol=1e-4, atol=1e-5)
    before = logits(inner)
    factors = {(LAYER, PRUNED): 0.0, (LAYER, MOVED): 2.0}
    with pytest.raises(HQError, match=r"Neuron \(1, 106\) is not in fp16"), mapped.scale(factors):
        pass
    np.testing.assert_array_equal(logits(inner), before)


def with_neuron(neurons: NeuronSet, index: int) -> NeuronSet:
    """The set with its middle neuron at another index."""
    first, second, third = neurons.neurons
    moved = second.model_copy(update={"layer": LAYER, "index": index})
    return neurons.model_copy(update={"neurons": (first, moved, third)})


def test_a_set_that_needs_the_pruned_neuron_is_refused(source, mapped, folder):
    plain = neuron_set(source.identity)
    good, bad = with_neuron(plain, MOVED), with_neuron(plain, PRUNED)
    mapping.require(folder, "gptq-4", good)
    with pytest.raises(HQError, match=r"At gptq-4 1 of the set's 3 neurons .* \(1, 106\) first"):
        mapping.require(folder, "gptq-4", bad)
    mapping.require(folder, "gptq-4")
    ours, theirs = (list(b.trace(tiny.exchanges(4), MEASURES)) for b in (mapped, source))
    for batch, same in zip(ours, theirs, strict=True):
        scores = good.score(batch.features("sum", "answer"))
        np.testing.assert_allclose(scores, good.score(same.features("sum", "answer")), rtol=1e-3)
        with pytest.raises(HQError, match=r"\(1, 106\) first"):
            bad.score(batch.features("sum", "answer"))


def test_traces_on_disk_know_what_is_missing(mapped, tmp_path):
    exchanges = tiny.exchanges(4)
    writer = TraceWriter(tmp_path, describe(mapped, exchanges, MEASURES, ("answer",)))
    for batch in mapped.trace(exchanges, MEASURES):
        writer.write(batch)
    writer.close(mapped.norms)
    traces = Traces.open(tmp_path)
    flat = LAYER * tiny.D_FF + PRUNED
    assert traces.info.missing == traces.info.unmatched == (flat,)
    features = traces.features("sum", "answer")
    assert features.missing == {flat}
    assert not features.values[:, flat].any()
    assert np.isfinite(features.values).all()


def test_tables_leave_missing_neurons_out(folder):
    summary = alignment(folder, "gptq-4", LAYER * tiny.D_FF + np.array([PRUNED, MOVED]))
    assert summary.probe_found == 1
    assert np.isfinite([summary.h_low, summary.h_high]).all()
    with (folder / mapping.LAYERS_FILE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["h_low"] for row in rows} == {"1.0"}


def test_a_variant_without_a_moved_or_missing_neuron_is_left_as_it_is(checkpoint, tmp_path):
    with TorchBackend(checkpoint("llama"), device="cpu") as backend:
        maps = list(map_model(of_checkpoint(checkpoint("llama")), backend.ffns()))
        arrays = {
            "places": np.concatenate([m.permutation.numpy() for m in maps]),
            "found": np.concatenate([m.matched.numpy() for m in maps]),
            "factors": np.concatenate([m.factors.numpy() for m in maps]),
            "widths": np.array([len(m.permutation) for m in maps]),
        }
        save_file(arrays, tmp_path / "neurons.safetensors")
        assert mapping.mapped(tmp_path, backend) is backend
        arrays["found"][3] = False  # its rounding error is too large for a match
        save_file(arrays, tmp_path / "neurons.safetensors")
        rounded = mapping.mapped(tmp_path, backend)
        assert (rounded.missing, rounded.unmatched) == (frozenset(), {3})
        np.testing.assert_array_equal(values(rounded), values(backend))
        assert (arrays["places"] != MISSING).all()


def test_layers_may_have_different_widths(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def ffn(width):
        shapes = ((width, 16), (width, 16), (16, width))
        return FFN(*(torch.randn(*shape, generator=generator) for shape in shapes))

    source = [ffn(width) for width in (24, 40)]
    order = [torch.randperm(width, generator=generator) for width in (24, 40)]
    variant = [one.at(indices) for one, indices in zip(source, order, strict=True)]
    with Progress(quiet=True).task("map", 2, "layers") as task:
        mapping.build(tmp_path, NeuronSpace.of_widths((24, 40)), source, variant, task)
    neurons = mapping.read(tmp_path)
    assert not neurons.identical
    assert neurons.matched.all()
    for found, indices in zip(neurons.by_layer(neurons.permutation), order, strict=True):
        assert (indices.numpy()[found] == np.arange(len(found))).all()
