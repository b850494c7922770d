"""Where a study's model comes from: the embedded one, a checkpoint, a hub id, or a GGUF file."""

from pathlib import Path

from harness.models.dequantized import checkpoint_of
from harness.models.embedded import EMBEDDED_NAME, packaged_gguf
from hq.errors import HQError
from hq.models.checkpoint import resolve
from hq.precisions import BACKEND_OF


def resolve_model(model: str) -> Path:
    """The checkpoint folder that a model's name stands for; that of a GGUF is dequantized.

    Raises HQError for a name that is none of these, or a model that cannot be read.
    """
    gguf = gguf_or_none(model)
    return resolve(model) if gguf is None else checkpoint_of(gguf)


def source_of(model: str, precision: str) -> Path:
    """What the backend of a precision opens: the model's GGUF file, or its checkpoint folder.

    Raises HQError as the other two do, and for an unknown precision.
    """
    return gguf_of(model) if BACKEND_OF[precision] == "llamacpp" else resolve_model(model)


def gguf_of(model: str | Path) -> Path:
    """The GGUF file that a name or path stands for. Raises HQError where it is none."""
    found = gguf_or_none(model)
    if found is None:
        raise HQError(f"{model} is no GGUF file: name one that ends in .gguf, or {EMBEDDED_NAME}.")
    return found


def gguf_or_none(model: str | Path) -> Path | None:
    """The file that the model is given as, None for a checkpoint or hub id."""
    if str(model) == EMBEDDED_NAME:
        return packaged_gguf()
    path = Path(model).expanduser()
    return path if path.suffix.lower() == ".gguf" else None
