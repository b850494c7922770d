"""Packed checkpoints beside gptqmodel, which is an extra: weights and kernels."""

import pytest
import torch

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.precisions.packed import NATIVE, require_correct_kernel
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint
from tests import packed_files, tiny
from tests.packed_files import ASYMMETRIC, MADE, PACKINGS, Packing


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("gptqmodel")


def modules(library, folder, backend, dtype):
    model = library.GPTQModel.load(
        str(folder), backend=library.BACKEND(backend), device="cpu", dtype=dtype
    )
    return dict(model.model.named_modules())


@pytest.mark.parametrize(
    "packing",
    [p for p in [*ASYMMETRIC, *PACKINGS.values()] if p.bits > 2 and p.method == "gptq"],
    ids=str,
)
def test_weights_are_those_of_the_library(packing, library, tmp_path):
    packed_files.save("llama", tmp_path / "c", packing)
    theirs = modules(library, tmp_path / "c", "gptq_torch", torch.float16)
    for one in PackedCheckpoint(tmp_path / "c").layers():
        dense = theirs[one.name].dequantize_weight().T
        torch.testing.assert_close(one.dense(), dense.float(), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("precision", MADE)
def test_native_computes_what_exact_does(precision, library, packed):
    exchanges = tiny.exchanges()
    with TorchBackend(packed(precision), precision, device="cpu") as exact:
        right = dict(exact.logits(exchanges))
        audit, norms = exact.audit(), exact.norms
    with TorchBackend(packed(precision), precision + NATIVE, device="cpu") as native:
        assert [(r.storage, r.bits_per_weight, r.count) for r in native.audit()] == [
            (r.storage, r.bits_per_weight, r.count) for r in audit
        ]
        assert native.audit()[0].module not in ("Linear", audit[0].module)
        found = dict(native.logits(exchanges))
        torch.testing.assert_close(
            torch.tensor(native.norms), torch.tensor(norms), rtol=2e-3, atol=0
        )
    for row, logits in right.items():
        error = ((found[row] - logits) ** 2).sum() / (logits**2).sum()
        assert error**0.5 < 0.05


def test_a_kernel_that_ignores_zero_points_is_caught(library, tmp_path):
    """gptqmodel's fused kernel, its own choice in float32 on a CPU."""
    packed_files.save("llama", tmp_path / "c", Packing(sym=False))
    theirs = modules(library, tmp_path / "c", "gptq_torch_fused", torch.float32)
    one = PackedCheckpoint(tmp_path / "c").layer("model.layers.0.mlp.up_proj")
    with pytest.raises(
        HQError, match=r"The product of kernel \w*TorchFusedLinear in .*up_proj is off by"
    ):
        require_correct_kernel(theirs[one.name], one, one.dense(), torch.float32)
