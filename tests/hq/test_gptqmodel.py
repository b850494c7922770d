"""Packed checkpoints beside gptqmodel, which is an extra: weights, kernels, and what it makes."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hq.backends.torch import TorchBackend
from hq.errors import HQError
from hq.packed.checkpoint import PackedCheckpoint
from hq.packed.making import Making, make
from hq.precisions.packed import NATIVE, require_right
from tests import packed_files, tiny, tiny_tokenizers
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
    with pytest.raises(HQError, match=r"TorchFusedLinear gives .*up_proj a product that is off by"):
        require_right(theirs[one.name], one, one.dense(), torch.float32)


@pytest.mark.parametrize(
    "settings", [{}, {"sym": False, "desc_act": True}, {"method": "awq", "sym": False}], ids=str
)
def test_what_the_library_makes_is_near_the_source(settings, library, tmp_path, monkeypatch):
    """GPTQ errs more than rounding on weights alone, as it spends the error where inputs are small."""
    source = tmp_path / "source"
    tiny.model("llama", num_key_value_heads=4).half().save_pretrained(
        source
    )  # AWQ wants 64 outputs
    tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False).save_pretrained(source)
    texts = tuple(tuple((7 * i + 3 * j) % 120 + 5 for j in range(60)) for i in range(8))
    values = {"method": "gptq", "bits": 4, "group_size": 64, "sym": True, **settings}
    done = []
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make(Making(source=source, texts=texts, **values), tmp_path / "made", lambda: done.append(1))
    assert len(done) == tiny.LAYERS
    assert not list((tmp_path / "here").iterdir())  # the library's logs go elsewhere
    weights = load_file(source / "model.safetensors")
    made = PackedCheckpoint(tmp_path / "made")
    assert made.scheme.desc_act == settings.get("desc_act", False)
    for one in made.layers():
        weight = weights[f"{one.name}.weight"].float()
        if settings.get("method") != "awq":  # whose weights are rescaled
            assert ((one.dense() - weight).norm() / weight.norm()) < 0.3
    name = f"{values['method']}-4"
    with TorchBackend(tmp_path / "made", name, device="cpu") as backend:
        assert np.isfinite(next(iter(backend.logits(tiny.exchanges())))[1]).all()


def test_what_the_library_cannot_make_is_said(library, tmp_path):
    making = Making(
        source=tmp_path / "nowhere", method="gptq", bits=4, group_size=64, sym=True, texts=((1, 2),)
    )
    with pytest.raises(HQError, match="gptqmodel could not make gptq"):
        make(making, tmp_path / "made")
