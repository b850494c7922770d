"""Checkpoints that gptqmodel and auto-round (an extra) quantize: close to the source, run by hq."""

import pytest
from safetensors.torch import load_file

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.precisions.packed import NATIVE
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint
from hq.precisions.packed_checkpoints.quantize import quantize_checkpoint
from hq.precisions.packed_checkpoints.quantizers import QUANTIZERS, QuantizationJob
from tests import tiny, tiny_tokenizers

TEXTS = tuple(tuple((7 * i + 3 * j) % 120 + 5 for j in range(60 + i)) for i in range(8))
GPTQ = {"method": "gptq", "sym": True}
ACT_ORDER = {"method": "gptq", "sym": False, "desc_act": True}
AWQ = {"method": "awq", "sym": False}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    model = tiny.model("llama", num_key_value_heads=4)  # AWQ's kernel wants 64 outputs
    model.half().save_pretrained(folder)
    tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("settings", [GPTQ, ACT_ORDER, AWQ], ids=str)
def test_a_quantized_checkpoint_is_close_to_its_source(settings, source, tmp_path, monkeypatch):
    """GPTQ errs more than rounding on weights alone, as it spends the error where inputs are small."""
    method = settings["method"]
    pytest.importorskip(QUANTIZERS[method].module)
    done = []
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    job = QuantizationJob(source=source, texts=TEXTS, bits=4, group_size=64, **settings)
    quantize_checkpoint(job, tmp_path / "made", lambda: done.append(1))
    assert len(done) == tiny.LAYERS
    assert not list((tmp_path / "here").iterdir())  # the libraries' logs go elsewhere
    assert all(path.is_file() for path in (tmp_path / "made").iterdir())
    weights = load_file(source / "model.safetensors")
    made = PackedCheckpoint(tmp_path / "made")
    assert made.scheme.desc_act == settings.get("desc_act", False)
    assert made.scheme.sym == settings["sym"]
    assert made.scheme.group_size == 64
    for one in made.layers():
        weight = weights[f"{one.name}.weight"].float()
        if method != "awq":  # whose weights are rescaled
            assert ((one.dense() - weight).norm() / weight.norm()) < 0.3
    exchanges = tiny.exchanges()
    with TorchBackend(source, "fp16", device="cpu") as backend:
        right = dict(backend.logits(exchanges))
    for precision in (f"{method}-4", f"{method}-4{NATIVE}"):
        if precision.endswith(NATIVE):
            pytest.importorskip("gptqmodel")
        with TorchBackend(tmp_path / "made", precision, device="cpu") as backend:
            found = dict(backend.logits(exchanges))
        error = sum(((found[row] - right[row]) ** 2).sum() for row in right)
        size = sum((right[row] ** 2).sum() for row in right)
        assert (error / size) ** 0.5 < 0.6, precision  # random weights err more than trained ones


@pytest.mark.parametrize("settings", [GPTQ, AWQ], ids=str)
def test_a_library_that_fails_is_named(settings, tmp_path):
    quantizer = QUANTIZERS[settings["method"]]
    pytest.importorskip(quantizer.module)
    job = QuantizationJob(
        source=tmp_path / "nowhere", bits=4, group_size=64, texts=((1, 2),), **settings
    )
    with pytest.raises(
        HQError, match=f"{quantizer.name} could not quantize .* to {settings['method']}"
    ):
        quantize_checkpoint(job, tmp_path / "made")


@pytest.mark.parametrize("settings", [GPTQ, AWQ], ids=str)
def test_a_missing_library_is_named(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("hq.precisions.packed_checkpoints.quantize.find_spec", lambda _: None)
    job = QuantizationJob(source=tmp_path, bits=4, group_size=64, texts=((1, 2),), **settings)
    with pytest.raises(
        HQError, match=rf"needs {QUANTIZERS[job.method].name}: pip install 'hq\[gptq\]'"
    ):
        quantize_checkpoint(job, tmp_path / "made")
