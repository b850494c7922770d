"""From the name of a precision to the backend that runs it."""

from collections.abc import Callable
from pathlib import Path

import torch

from hq.backends.base import Backend
from hq.backends.llamacpp_tails import MAX_ROWS
from hq.backends.torch import TorchBackend
from hq.neurons import ModelIdentity
from hq.precisions import BACKEND_OF

_Open = Callable[[Path, str, str | None, ModelIdentity | None], Backend]


def open_backend(
    source: Path,
    precision: str,
    device: str | None = None,
    model_identity: ModelIdentity | None = None,
) -> Backend:
    """The model in `source` at `precision`: a checkpoint folder, or a file for a `gguf-` one.

    Raises HQError for an unknown precision, and what the backend raises.
    """
    return _OPEN[BACKEND_OF[precision]](source, precision, device, model_identity)


def _torch(
    source: Path, precision: str, device: str | None, model_identity: ModelIdentity | None
) -> Backend:
    return TorchBackend(source, precision, device, model_identity=model_identity)


def _llamacpp(
    source: Path, precision: str, device: str | None, model_identity: ModelIdentity | None
) -> Backend:
    from hq.backends.llamacpp import LlamaBackend  # llama-cpp-python is an extra

    layers = 0 if device == "cpu" or not torch.cuda.is_available() else -1  # -1: all of them
    return LlamaBackend(
        source,
        precision,
        model_identity=model_identity,
        threads=torch.get_num_threads(),
        n_gpu_layers=layers,
    )


def max_rows(precision: str) -> int:
    """How many rows a decoding at this precision may continue side by side."""
    return _MAX_ROWS[BACKEND_OF[precision]]


_OPEN: dict[str, _Open] = {"torch": _torch, "llamacpp": _llamacpp}
_MAX_ROWS = {"torch": 1 << 16, "llamacpp": MAX_ROWS}  # torch is bounded by memory, and later
