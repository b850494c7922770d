"""Open the backend of a precision by name, and choose its device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hq.backends.base import Backend
from hq.backends.llamacpp.packed_batch import MAX_ROWS
from hq.backends.transformers.backend import TorchBackend, usable_device
from hq.errors import HQError
from hq.llamacpp.library import load_library
from hq.models.placement import AUTO
from hq.neurons.neuron_set import ModelIdentity
from hq.precisions import BACKEND_OF

_CUDA = ("CUDA", "ROCm")  # llama.cpp's names of the devices that torch calls cuda


def open_backend(
    source: Path,
    precision: str,
    device: str | None = None,
    model_identity: ModelIdentity | None = None,
) -> Backend:
    """Open the model in `source`, a checkpoint folder or a GGUF file, at a precision.

    `device_of` chooses the device if none is named. Raises HQError for an unknown precision, a
    device that its backend cannot use here, and if the backend does.
    """
    runner = _RUNNERS[BACKEND_OF[precision]]
    return runner.open(source, precision, runner.device(device), model_identity)


def device_of(precision: str, device: str | None) -> str:
    """The device on which a precision runs; `None` selects CUDA if it is available, else the CPU.

    llama.cpp distributes layers over all GPUs by itself, so `auto` is `cuda` there.

    Raises HQError for an unknown precision, and for a device that its backend cannot use here.
    """
    return _RUNNERS[BACKEND_OF[precision]].device(device)


def max_rows(precision: str) -> int:
    """The most rows that a decoding at this precision continues in parallel."""
    return _RUNNERS[BACKEND_OF[precision]].max_rows


def _torch(
    source: Path, precision: str, device: str, model_identity: ModelIdentity | None
) -> Backend:
    return TorchBackend(source, precision, device, model_identity=model_identity)


def _torch_device(device: str | None) -> str:
    usable = usable_device(device)
    return AUTO if device == AUTO else str(usable)


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
    if device not in (None, "cpu", "cuda", AUTO):
        raise HQError(
            f"llama.cpp runs on cpu or cuda (all GPUs), not on {device!r}: use one of these, or "
            "omit `device`."
        )
    if device == "cpu" or (device is None and not torch.cuda.is_available()):
        return "cpu"
    has_cuda = any(name.startswith(_CUDA) for name in load_library().gpus)
    if device in ("cuda", AUTO) and not has_cuda:
        raise HQError(
            "This build of llama-cpp-python finds no CUDA device here: rebuild it with "
            "CMAKE_ARGS=-DGGML_CUDA=on, or omit `device`."
        )
    return "cuda" if has_cuda else "cpu"


@dataclass(frozen=True, slots=True)
class _Runner:
    """A backend: how it opens a model, the device it uses, and its maximal rows."""

    open: Callable[[Path, str, str, ModelIdentity | None], Backend]
    device: Callable[[str | None], str]
    max_rows: int


_RUNNERS = {
    "torch": _Runner(_torch, _torch_device, 1 << 16),  # memory limits them earlier
    "llamacpp": _Runner(_llamacpp, _llamacpp_device, MAX_ROWS),
}
