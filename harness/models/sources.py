"""Resolves a model's name: a packaged model, a checkpoint folder, a hub id or a GGUF file."""

from pathlib import Path

from harness.models.dequantized import checkpoint_of
from harness.models.packaged import PACKAGED, packaged_gguf
from hq.errors import HQError
from hq.models.checkpoint import resolve
from hq.precisions import BACKEND_OF


def resolve_model(model: str) -> Path:
    """Return the checkpoint folder of a model; a GGUF file is dequantized into one.

    Raises HQError if there is no such model or it cannot be read.
    """
    gguf = gguf_or_none(model)
    return resolve(model) if gguf is None else checkpoint_of(gguf)


def source_of(model: str, precision: str) -> Path:
    """Return what a precision's backend opens: the model's GGUF file or checkpoint folder.

    Raises HQError if there is no such model or precision.
    """
    return gguf_of(model) if BACKEND_OF[precision] == "llamacpp" else resolve_model(model)


def gguf_of(model: str | Path) -> Path:
    """Return the GGUF file of a name or path. Raises HQError if it is not a GGUF file."""
    file = gguf_or_none(model)
    if file is None:
        packaged = ", ".join(PACKAGED)
        raise HQError(f"{model} is not a GGUF file: name a .gguf file, or one of {packaged}.")
    return file


def gguf_or_none(model: str | Path) -> Path | None:
    """Return the GGUF file of a name or path, or None for a checkpoint or hub id."""
    if str(model) in PACKAGED:
        return packaged_gguf(str(model))
    path = Path(model).expanduser()
    return path if path.suffix.lower() == ".gguf" else None
