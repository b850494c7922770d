"""torchao's precisions: codes, groups and weights are what they say, and nothing is left dense."""

import sys

import pytest
import torch
from torch import nn

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.precisions import PRECISIONS
from hq.precisions.dense import FP16
from hq.precisions.torchao import GROUP, HQQ, TorchAOInt4, TorchAOInt8
from tests import tiny

NAMES = ("torchao-int8", "torchao-int4", "hqq-4")


@pytest.fixture(autouse=True)
def _library(request):
    if "extra_is_named" not in request.node.name:
        pytest.importorskip("torchao")


def weight(d_in: int = 128) -> torch.Tensor:
    return torch.randn(48, d_in, generator=torch.Generator().manual_seed(0)).half().float()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_codes_by_scales(name):
    """Recomputed from codes, scales and zero points; then what the linear multiplies by."""
    module = PRECISIONS[name].layer(weight())
    held = module.weight
    codes, top = held.qdata.float(), 127 if name == "torchao-int8" else 7
    assert -top - 1 <= codes.min() <= codes.max() <= top
    groups = held.scale.shape[1]
    assert groups == (1 if name == "torchao-int8" else 128 // GROUP)
    parts = codes.view(48, groups, -1)
    zeros, scales = (t.float().view(48, groups, 1) for t in (held.zero_point, held.scale))
    expected = ((parts - zeros) * scales).view(48, 128)
    dense = PRECISIONS[name].dense(module)
    torch.testing.assert_close(dense, expected, rtol=0, atol=0)
    torch.testing.assert_close(dense, held.dequantize(), rtol=0, atol=0)
    torch.testing.assert_close(module(torch.eye(128)).T, dense, rtol=1e-6, atol=0)
    error = float((dense - weight()).norm() / weight().norm())
    assert error < (0.02 if name == "torchao-int8" else 0.13)


def test_hqq_errs_less_than_rounding():
    """Its asymmetric codes spend less, and its fit moves most weights nearer."""
    errors = [
        float((PRECISIONS[name].layer(weight()).weight.dequantize() - weight()).abs().median())
        for name in ("hqq-4", "torchao-int4")
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("name", "held", "shipped"),
    [("torchao-int8", 8.3125, 8.3125), ("torchao-int4", 8.625, 4.625), ("hqq-4", 8.5, 4.5)],
)
def test_bits_are_those_that_are_held_and_those_that_ship(name, held, shipped):
    """A byte a code; FP32 scales and a byte of zero point, or FP16 both, for each group."""
    stored = PRECISIONS[name].stored(PRECISIONS[name].layer(weight()))
    assert 8 * stored.nbytes / stored.weights == held
    assert 8 * stored.shipped_nbytes / stored.weights == shipped
    assert name == "torchao-int8" or f"g{GROUP}" in stored.storage


def test_only_its_own_weights_are_held():
    for one in NAMES:
        layer = PRECISIONS[one].layer(weight())
        assert [PRECISIONS[other].is_precision_of(layer) for other in NAMES] == [
            one == o for o in NAMES
        ]
        assert not PRECISIONS[one].is_precision_of(FP16().layer(weight()))
        assert not PRECISIONS[one].is_precision_of(nn.Identity())


def test_other_groups_are_not_held():
    import torchao.quantization as ao

    layer = FP16().layer(weight())
    ao.quantize_(layer, ao.IntxWeightOnlyConfig(torch.int4, ao.PerGroup(32)))
    assert not TorchAOInt4().is_precision_of(layer)


@pytest.mark.parametrize("kind", [TorchAOInt8, TorchAOInt4, HQQ])
def test_a_model_loaded_dense_is_refused_under_another_name(kind, checkpoint, monkeypatch):
    monkeypatch.setattr(kind, "load", lambda self, *args: FP16().load(*args))
    with pytest.raises(HQError, match=f"21 of 21 projections are not {kind.name}"):
        TorchBackend(checkpoint("llama"), kind.name, device="cpu")


def test_a_width_that_groups_do_not_divide_is_named(tmp_path):
    """torchao's own config would leave that layer dense."""
    tiny.model("llama", intermediate_size=96).half().save_pretrained(tmp_path)
    with pytest.raises(HQError, match=r"0\.mlp\.down_proj has 96 inputs, which groups of 64"):
        TorchBackend(tmp_path, "torchao-int4", device="cpu")


def test_a_layer_of_another_class_is_refused(checkpoint):
    """GPT-2's Conv1D, which torchao does not quantize."""
    with pytest.raises(HQError, match="12 of 12 projections are not torchao-int8"):
        TorchBackend(checkpoint("gpt2"), "torchao-int8", device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_without_torchao_the_extra_is_named(name, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(HQError, match=rf"'{name}' needs torchao: pip install 'hq\[torchao\]'"):
        TorchBackend(checkpoint("llama"), name, device="cpu")
