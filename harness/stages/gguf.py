"""Stage `gguf`: the checkpoint as a GGUF file, dense or quantized."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from harness.store.store import Stage
from hq.gguf.quantize import quantize
from hq.gguf.write import Dtype, write_gguf
from hq.neurons.neuron_set import ModelIdentity

STAGE = Stage("gguf")
FILE = "model.gguf"
_WRITTEN: tuple[Dtype, ...] = get_args(Dtype)


def make(
    folder: Path, kind: str, checkpoint: Path, identity: ModelIdentity, dense: Callable[[], Path]
) -> None:
    """Writes model.gguf of a kind: from the checkpoint, or by quantizing what `dense` gives."""
    for written in _WRITTEN:
        if kind == written:
            write_gguf(checkpoint, folder / FILE, written, identity)
            return
    quantize(dense(), folder / FILE, kind)
