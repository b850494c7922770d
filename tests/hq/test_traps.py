"""Two ways in which others go wrong on packed weights, beside the right values.

Scaling a neuron by editing columns of `down.weight` in place, and taking norms of what `weight`
holds, are right on dense weights only.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hq.backends.transformers.backend import TorchBackend
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint
from tests import tiny

NEURON = (1, 7)
UNIT = torch.zeros(1, tiny.D_FF)
UNIT[0, NEURON[1]] = 1.0


@pytest.fixture
def opened(checkpoint: Callable[[str], Path], packed: Callable[[str], Path]):
    """The tiny llama at a precision, and the down projection that the neuron feeds."""

    def of(precision: str) -> tuple[TorchBackend, torch.nn.Module]:
        if "gptq" in precision:
            pytest.importorskip("gptqmodel")
            path = packed("gptq-4")
        else:
            path = checkpoint("llama")
        backend = TorchBackend(path, precision, device="cpu")
        return backend, backend.downs[NEURON[0]]

    return of


def column(backend: TorchBackend, down: torch.nn.Module, alpha: float = 1.0) -> torch.Tensor:
    """What the neuron writes at h = 1: its column of W_down, through the real kernel."""
    with torch.inference_mode(), backend.scale({NEURON: alpha}):
        return down(UNIT.to(backend.model.dtype)).float()[0]


@pytest.mark.parametrize("precision", ["fp16", "int8", "nf4", "gptq-4-native"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_the_right_value_is_alpha_times_the_column(precision, alpha, opened):
    backend, down = opened(precision)
    right = alpha * column(backend, down)
    error = (column(backend, down, alpha) - right).norm()
    assert error <= 0.01 * right.norm() + 1e-6
    assert right.norm() == pytest.approx(
        alpha * backend.norms.reshape(tiny.LAYERS, -1)[NEURON], rel=0.01
    )


def test_editing_the_weight_in_place_fails_on_nf4(opened):
    """Codes lie in one column, two to a byte: there is no column 7."""
    _, down = opened("nf4")
    assert down.weight.shape == (64 * tiny.D_FF // 2, 1)
    with pytest.raises(IndexError):
        down.weight.data[:, NEURON[1]] *= 0.5


def test_editing_the_weight_in_place_wraps_around_on_int8(opened):
    backend, down = opened("int8")
    right = 2 * column(backend, down)
    with pytest.raises(RuntimeError, match="can't be cast"):
        down.weight.data[:, NEURON[1]] *= 0.5
    before = down.weight.data[:, NEURON[1]].clone()
    down.weight.data[:, NEURON[1]] *= 2
    wrapped = before.int().abs() > 63
    assert wrapped.any()
    now = down.weight.data[:, NEURON[1]]
    assert (now[wrapped].int() != 2 * before[wrapped].int()).all()
    assert (backend._dense(down)[:, NEURON[1]] - right).norm() > 0.3 * right.norm()


def test_editing_a_weight_changes_nothing_on_gptq(opened):
    """There is no `weight`, and what the kernel reads was repacked at the first product."""
    backend, down = opened("gptq-4-native")
    before = column(backend, down)
    assert getattr(down, "weight", None) is None
    down.scales.data *= 0.5
    torch.testing.assert_close(column(backend, down), before, rtol=0, atol=0)
    right = 0.5 * before
    torch.testing.assert_close(column(backend, down, 0.5), right, rtol=1e-2, atol=1e-3)


def test_norms_of_packed_words_are_no_norms_on_gptq(packed, opened):
    backend, down = opened("gptq-4-native")
    words = (
        PackedCheckpoint(packed("gptq-4")).layer("model.layers.1.mlp.down_proj").tensors["qweight"]
    )
    assert words.float().norm(dim=0).shape == (64,)  # of the outputs: d_model, not d_ff
    with torch.inference_mode():
        columns = down(torch.eye(tiny.D_FF).to(backend.model.dtype)).float()
    norms = torch.linalg.vector_norm(columns, dim=1).numpy()
    np.testing.assert_allclose(backend.norms.reshape(tiny.LAYERS, -1)[NEURON[0]], norms, rtol=5e-3)
