"""‖W_down[:, i]‖₂ of a GGUF file's own dequantized weights, cached in a file next to the model."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hq.gguf.types import GGMLType, dequantized
from hq.storage.atomic import write_whole

_ROWS = 128  # rows that are dequantized at a time: a few MB of float32, whatever the model
_SCHEMA = "1"

Norms = Float[np.ndarray, "layer d_ff"]


def dequantized_column_norms(
    rows: UInt8[np.ndarray, "row nbytes"], kind: GGMLType
) -> Float[np.ndarray, " weight"]:
    """The norm of every column of a stored matrix, summed in float64."""
    squares: np.ndarray | float = 0.0
    for start in range(0, len(rows), _ROWS):
        dense = dequantized(rows[start : start + _ROWS], kind)
        with np.errstate(all="ignore"):
            squares = squares + np.einsum("ri,ri->i", dense, dense, dtype=np.float64)
    return np.sqrt(squares).astype(np.float32)


def cached_norms(
    model: Path, stamp: str, shape: tuple[int, int], compute: Callable[[], Norms]
) -> Norms:
    """Read the norms that are cached for `model`, or compute and cache them.

    Args:
        model: The GGUF file, or the first part of a split one.
        stamp: Identifies the content of the file.
        shape: Number of layers and d_ff.
        compute: Called if the cache is missing, damaged, or of another stamp.

    If the folder cannot be written, the norms are computed each time.
    """
    path = model.with_name(f"{model.name}.hq.safetensors")
    cached = _load(path, stamp, shape)
    if cached is not None:
        return cached
    norms = compute()
    with suppress(OSError):
        write_whole(path, save({"norms": norms}, _metadata(stamp, norms)))
    return norms


def _load(path: Path, stamp: str, shape: tuple[int, int]) -> Norms | None:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, norms = file.metadata() or {}, file.get_tensor("norms")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    fits = norms.shape == shape and norms.dtype == np.float32
    return norms if fits and metadata == _metadata(stamp, norms) else None


def _metadata(stamp: str, norms: Norms) -> dict[str, str]:
    """What shows that the norms are of this file and undamaged."""
    digest = hashlib.blake2b(norms.tobytes(), digest_size=8).hexdigest()
    return {"schema": _SCHEMA, "stamp": stamp, "digest": digest}
