"""From the name of a precision to the backend that runs it, and the device that it runs on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hq.backends.base import Backend
from hq.backends.llamacpp.packed_batch import MAX_ROWS
from hq.backends.transformers.backend import TorchBackend, usable_device
from hq.errors import HQError
from hq.llamacpp.library import load_library
from hq.neurons.neuron_set import ModelIdentity
from hq.precisions import BACKEND_OF

_CUDA = ("CUDA", "ROCm")  # what llama.cpp calls the devices that torch calls cuda


def open_backend(
    source: Path,
    precision: str,
    device: str | None = None,
    model_identity: ModelIdentity | None = None,
) -> Backend:
    """The model in `source` at `precision`: a checkpoint folder, or a file for a `gguf-` one.

    Without a `device` it runs where `device_of` says. Raises HQError for an unknown precision, a
    device that the precision's backend does not have here, and what the backend raises.
    """
    runner = _RUNNERS[BACKEND_OF[precision]]
    return runner.open(source, precision, runner.device(device), model_identity)


def device_of(precision: str, device: str | None) -> str:
    """The device that `precision` runs on if `device` is asked for; None is CUDA, else the CPU.

    Raises HQError for an unknown precision, and a device that its backend does not have here.
    """
    return _RUNNERS[BACKEND_OF[precision]].device(device)


def max_rows(precision: str) -> int:
    """How many rows a decoding at this precision may continue side by side."""
    return _RUNNERS[BACKEND_OF[precision]].max_rows


def _torch(
    source: Path, precision: str, device: str, model_identity: ModelIdentity | None
) -> Backend:
    return TorchBackend(source, precision, device, model_identity=model_identity)


def _torch_device(device: str | None) -> str:
    return str(usable_device(device))


def _llamacpp(
    source: Path, precision: str, device: str, model_identity: ModelIdentity | None
) -> Backend:
    from hq.backends.llamacpp.backend import LlamaBackend  # llama-cpp-python is an extra

    return LlamaBackend(
        source,
        precision,
        model_identity=model_identity,
        threads=torch.get_num_threads(),
        n_gpu_layers=0 if device == "cpu" else -1,
    )


def _llamacpp_device(device: str | None) -> str:
    if device not in (None, "cpu", "cuda"):
        raise HQError(
            f"llama.cpp runs on cpu or cuda, not on {device!r}: name one of these, or leave out "
            "`device`."
        )
    if device == "cpu" or (device is None and not torch.cuda.is_available()):
        return "cpu"
    has_cuda = any(name.startswith(_CUDA) for name in load_library().gpus)
    if device == "cuda" and not has_cuda:
        raise HQError(
            "There is no CUDA device that this build of llama-cpp-python can use here: rebuild it "
            "with CMAKE_ARGS=-DGGML_CUDA=on, or leave out `device`."
        )
    return "cuda" if has_cuda else "cpu"


@dataclass(frozen=True, slots=True)
class _Runner:
    """What runs precisions: how it opens one, which device it takes, and its widest decoding."""

    open: Callable[[Path, str, str, ModelIdentity | None], Backend]
    device: Callable[[str | None], str]
    max_rows: int


_RUNNERS = {
    "torch": _Runner(_torch, _torch_device, 1 << 16),  # bounded by memory, and later
    "llamacpp": _Runner(_llamacpp, _llamacpp_device, MAX_ROWS),
}
