"""Models whose layers are on several devices, or offloaded, are read and scaled as on one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import hq
from hq.api.model import Model
from hq.backends.base import SITES
from hq.backends.opening import open_backend
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from hq.models.head import ReferenceLogits
from hq.monitor import TorchMonitor
from hq.neurons.cett import MEASURES, SPANS
from tests import tiny
from tests.hq.monitored import PROMPT, asked, neuron_set

Array = np.ndarray
Checkpoint = Callable[[str], Path]
FAMILIES = ("llama", "gemma3_text", "phi3", "opt", "gpt2")
NEURONS = np.array([1, 5, tiny.D_FF + 2, (tiny.LAYERS - 1) * tiny.D_FF + 3])
FACTORS = {(0, 1): 0.0, (1, 4): 0.3, (2, 7): 3.0}
HALF = 2e-3  # relative, of logits in FP16
CUDA = torch.cuda.device_count() if torch.cuda.is_available() else 0
needs_two = pytest.mark.skipif(CUDA < 2, reason="needs two GPUs")


def device_map(folder: Path, layers: list[str | int], rest: str | int) -> dict[str, str | int]:
    """A place for each layer, and one for everything else."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    path = next(n for n, m in model.named_modules() if n.endswith((".layers", ".h")))
    found: dict[str, str | int] = {f"{path}.{i}": place for i, place in enumerate(layers)}
    for name, module in model.named_modules():
        own = not any(True for _ in module.children()) and not name.startswith(f"{path}.")
        if name and own:
            found[name] = rest
    return found


def wrapped(folder: Path, places: dict[str, str | int], scratch: Path, dtype: Any) -> Model:
    """The model as a user loads it with a device map."""
    model = hf.AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=scratch / "offload", dtype=dtype
    )
    return hq.wrap(model, model_identity=checkpoint_identity(folder))


def everything(backend: Any, reference: ReferenceLogits | None = None) -> dict[str, Array]:
    """All that a backend reads of some exchanges, plain and scaled."""
    exchanges = tiny.exchanges()
    found: dict[str, Array] = {"norms": backend.norms}

    def read(suffix: str) -> None:
        for batch in backend.trace(exchanges, MEASURES, SPANS):
            found[f"trace {batch.number}{suffix}"] = batch.values
        for tokens in backend.read_tokens(exchanges, NEURONS, "sum"):
            found[f"tokens {tokens.number}{suffix}"] = tokens.values
        for part in backend.predictions(exchanges, reference):
            values = [part.entropy, part.log_prob, part.kl][: 2 if reference is None else 3]
            found[f"predictions {part.number}{suffix}"] = np.stack(values)
        for row, logits in backend.logits(exchanges):
            found[f"logits {row}{suffix}"] = logits
        for hidden in backend.hidden_states(exchanges):
            for site in SITES:
                found[f"{site} {hidden.number}{suffix}"] = hidden.mean[site]
                found[f"last {site} {hidden.number}{suffix}"] = hidden.last[site]
        decoding = backend.decoding()
        decoding.share([(5, 6, 7, 8), (5, 6, 9, 9)])
        found[f"start{suffix}"] = decoding.start([(5, 6, 7, 8), (5, 6, 9)]).cpu().numpy()
        stepped = decoding.step(np.array([1, 0, 0]), np.array([10, 11, 12]))
        found[f"step{suffix}"] = stepped.cpu().numpy()

    read("")
    with backend.scale(FACTORS):
        read(", scaled")
    return found


def compare(
    found: dict[str, Array],
    expected: dict[str, Array],
    tolerance: float,
    of_decoding: float | None = None,
) -> None:
    """Each array is within a tolerance of its size.

    A distributed decoding multiplies by the output head in another shape, which FP16 rounds
    otherwise: `of_decoding` is its tolerance.
    """
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        error = np.linalg.norm(found[name] - values) / np.linalg.norm(values)
        decoded = name.startswith(("start", "step"))
        assert error <= (of_decoding if decoded and of_decoding else tolerance), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [["cpu", "disk", "cpu"], ["disk"] * 3])
def test_layers_on_disk_are_read_as_in_memory(
    family: str, layers: list[str], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint(family)
    rest = "disk" if layers == ["disk"] * 3 else "cpu"
    places = device_map(folder, layers, rest)
    with TorchBackend(folder, device="cpu") as plain:
        expected = everything(plain)
        size = plain.weight_bytes()
        weights = plain.ffns()[1]
    model = wrapped(folder, places, tmp_path, torch.float32)
    backend: Any = model.backend
    assert backend.downs[1].weight.is_meta
    compare(everything(backend), expected, 1e-6)
    assert backend.weight_bytes() == size
    assert torch.equal(backend.ffns()[1].down, weights.down)
    assert backend.downs[1].weight.is_meta  # nothing stays in memory
    if rest == "cpu":
        assert backend.compute == (
            "float32, 2 of 3 layers on cpu, 1 of 3 layers on cpu, weights on disk"
        )
        on_disk = [row for row in backend.audit() if row.compute.endswith("weights on disk")]
        assert 0 < sum(row.weights for row in on_disk) < sum(r.weights for r in backend.audit())


def test_an_offloaded_model_is_recognised_and_watched(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint("llama")
    places = device_map(folder, ["cpu", "disk", "disk"], "disk")
    model: Any = hf.AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path, dtype=torch.float32
    )
    neurons = neuron_set(checkpoint_identity(folder))  # by its norms, which are on the disk
    whole = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for one in (whole, model):
        with TorchMonitor(one, neurons) as monitor:
            one.generate(**asked(PROMPT))
        scores.append([step.score for step in monitor.steps])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)
    assert len(scores[0]) == 8


def test_offloaded_experts_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("mixtral")
    places = device_map(folder, ["cpu", "disk", "cpu"], "cpu")
    with pytest.raises(HQError, match=r"experts that are offloaded .* all its layers on GPUs"):
        wrapped(folder, places, tmp_path, torch.float32)


@pytest.mark.skipif(CUDA > 0, reason="asks for a CUDA that is not there")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "nf4"])
def test_auto_without_a_gpu_is_refused(precision: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(HQError, match="'auto' distributes layers over GPUs, and torch has no CUDA"):
        open_backend(checkpoint("llama"), precision, "auto")


def test_a_precision_of_one_device_is_not_distributed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(HQError, match=r"'fp8' runs on one device: .*\(int8, .*fp16, bf16\)"):
        TorchBackend(checkpoint("llama"), "fp8", device="auto")


@pytest.fixture
def on_one(checkpoint: Checkpoint) -> Iterator[TorchBackend]:
    """The tiny llama on the first GPU."""
    with TorchBackend(checkpoint("llama"), device="cuda:0") as opened:
        yield opened


@pytest.mark.gpu
@pytest.mark.parametrize("rest", [0, "cpu"])
def test_weights_in_the_memory_of_the_cpu_are_read_as_on_the_gpu(
    rest: str | int, on_one: TorchBackend, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The GPU computes, so the numbers are its own."""
    folder = checkpoint("llama")
    layers: list[str | int] = [0, "cpu", "cpu"]
    model = wrapped(folder, device_map(folder, layers, rest), tmp_path, torch.float16)
    compare(everything(model.backend), everything(on_one), 1e-6, HALF)
    assert model.backend.compute == (
        "float16, 1 of 3 layers on cuda:0, 2 of 3 layers on cuda:0, weights in the CPU's memory"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "nf4", "int8"])
def test_auto_is_the_gpus(precision: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama")
    with TorchBackend(folder, precision, device="cuda:0") as plain:
        expected = everything(plain)
    with TorchBackend(folder, precision, device="auto") as auto:
        assert auto.device.type == "cuda"
        compare(everything(auto), expected, 1e-6 if CUDA == 1 else 1e-2)


@pytest.mark.gpu
@needs_two
@pytest.mark.parametrize("layers", [[0, 1, 1], [1, 0, 1]])
@pytest.mark.parametrize("rest", [0, 1])
def test_layers_on_two_gpus_are_read_as_on_one(
    layers: list[str | int],
    rest: int,
    on_one: TorchBackend,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    folder = checkpoint("llama")
    model = wrapped(folder, device_map(folder, layers, rest), tmp_path, torch.float16)
    compare(everything(model.backend), everything(on_one), 1e-6, HALF)
    assert "on cuda:1" in model.backend.compute
