"""Devices: what is asked for runs, or is an error; and what the table says about the arithmetic."""

import ctypes
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hq.backends.opening import device_of, open_backend
from hq.backends.transformers import loaded
from hq.backends.transformers.backend import usable_device
from hq.errors import HQError
from hq.gguf.types import TYPES
from hq.monitor import torch as torch_monitor
from tests.hq import gguf_files
from tests.hq.monitored import load, neuron_set

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a CUDA that is not there")
needs_llama = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama_cpp")


@pytest.mark.parametrize("device", ["quantum", "mps:0", "cpu:1", "cuda:x", "CUDA", "xpu", ""])
@pytest.mark.parametrize("precision", ["fp16", pytest.param("gguf-f32", marks=needs_llama)])
def test_an_unknown_device_is_refused(precision, device, checkpoint, gguf):
    source = checkpoint("llama") if precision == "fp16" else gguf("llama")
    with pytest.raises(HQError, match=rf"cpu or cuda.*not on {device!r}"):
        open_backend(source, precision, device)


def test_apple_s_gpu_is_refused(checkpoint, monkeypatch):
    with pytest.raises(HQError, match=r"Apple's GPU \(mps\), which has no float64.* device cpu"):
        usable_device("mps")
    model = load(checkpoint("llama"))
    for module in (loaded, torch_monitor):
        monkeypatch.setattr(module, "device_of", lambda _: torch.device("mps"))
    with pytest.raises(HQError, match="Apple's GPU"):
        loaded.LoadedBackend(model)
    with pytest.raises(HQError, match="Apple's GPU"):
        torch_monitor.TorchMonitor(model, neuron_set(loaded.loaded_identity(model)))


@no_cuda
@pytest.mark.parametrize(
    ("precision", "device"),
    [("fp16", "cuda"), ("fp16", "cuda:0"), pytest.param("gguf-f32", "cuda", marks=needs_llama)],
)
def test_cuda_where_there_is_none_is_refused(precision, device, checkpoint, gguf):
    source = checkpoint("llama") if precision == "fp16" else gguf("llama")
    with pytest.raises(HQError, match="CUDA device"):
        open_backend(source, precision, device)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device("cuda:1") == torch.device("cuda", 1)
    assert usable_device(None) == usable_device("cuda") == torch.device("cuda")
    with pytest.raises(HQError, match=r"torch has 2 CUDA devices here, not cuda:2"):
        usable_device("cuda:2")


@no_cuda
@needs_llama
def test_without_a_device_it_is_the_cpu(checkpoint, gguf):
    assert device_of("fp16", None) == device_of("gguf-f32", None) == "cpu"
    with open_backend(gguf("llama"), "gguf-f32") as backend:
        assert backend.device == "CPU"


@needs_llama
@pytest.mark.parametrize(
    ("layers", "message"), [(-1, "needs a GPU"), (3, "needs a GPU"), (-2, "-1 for all layers")]
)
def test_gpu_layers_without_a_gpu_are_refused(layers, message, gguf):
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.llamacpp.library import load_library

    if load_library().gpus and layers >= -1:
        pytest.skip("has a GPU")
    with pytest.raises(HQError, match=message):
        LlamaBackend(gguf("llama"), n_gpu_layers=layers)


@needs_llama
def test_a_gpu_that_llama_cpp_does_not_use_is_an_error(gguf, monkeypatch):
    """A build that lists a GPU and computes on the CPU all the same."""
    from hq.backends import opening
    from hq.llamacpp import library as library_module
    from hq.llamacpp import model

    if library_module.load_library().gpus:
        pytest.skip("has a GPU")
    listed = replace(library_module.load_library(), gpus=("CUDA0",))
    for module in (opening, model):
        monkeypatch.setattr(module, "load_library", lambda: listed)
    assert device_of("gguf-f32", "cuda") == "cuda"
    with pytest.raises(HQError, match="computes 0 of the 3 FFNs"):
        open_backend(gguf("llama"), "gguf-f32", "cuda")


@needs_llama
@pytest.mark.parametrize(
    ("kind", "kinds", "compute"),
    [
        ("F32", {}, "float32"),
        ("F16", {}, "float16"),
        ("BF16", {}, "bfloat16"),
        ("Q8_0", {}, "int8"),
        ("Q8_0", {"attn": "F32", "token": "F16"}, "int8"),
        ("F16", {"ffn_down": "Q4_0"}, "mixed: float16, int8"),
        ("BF16", {"blk.2.ffn_up": "F32"}, "mixed: bfloat16, float32"),
    ],
)
def test_compute_is_what_the_ffn_is_multiplied_in(kind, kinds, compute, tmp_path: Path):
    from hq.backends.llamacpp.backend import LlamaBackend

    path = gguf_files.write(tmp_path / "tiny.gguf", kind, kinds=kinds)
    with LlamaBackend(path) as backend:
        assert backend.compute == compute
        runs_in = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
        for row in backend.audit():
            assert row.compute == runs_in.get(row.storage, "int8")


@needs_llama
def test_the_cpu_s_kernels_take_the_activations_that_are_named():
    """Compared with llama.cpp's own table: the type that each weight's dot product multiplies by."""
    import llama_cpp
    from llama_cpp import _ctypes_extensions as extensions

    from hq.llamacpp.library import load_library

    assert load_library().llama
    folder = Path(llama_cpp.__file__).parent / "lib"
    try:
        traits_of = extensions.load_shared_library("ggml-cpu", folder).ggml_get_type_traits_cpu
    except (AttributeError, FileNotFoundError):
        pytest.skip("this build has its CPU kernels in libraries of their own")
    traits_of.restype = ctypes.c_void_p
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    for number, kind in TYPES.items():
        if kind.is_weight_type:
            pointers = 2 * ctypes.sizeof(ctypes.c_void_p)
            multiplies = TYPES[ctypes.c_int.from_address(traits_of(number) + pointers).value].name
            assert kind.activations == names.get(multiplies, "int8"), kind.name
            assert multiplies in names or multiplies.startswith("Q8_")
