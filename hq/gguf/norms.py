"""‖W_down[:, i]‖₂ of a GGUF file's own dequantized blocks, kept in a file beside the model."""

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

_ROWS = 128  # dequantized at a time: a few MB of float32, whatever the model
_SCHEMA = "1"

Norms = Float[np.ndarray, "layer d_ff"]


def column_norms(
    rows: UInt8[np.ndarray, "row nbytes"], kind: GGMLType
) -> Float[np.ndarray, " weight"]:
    """The norm of every column, summed in float64."""
    total: np.ndarray | float = 0.0
    for start in range(0, len(rows), _ROWS):
        dense = dequantized(rows[start : start + _ROWS], kind)
        with np.errstate(all="ignore"):
            total = total + np.einsum("ri,ri->i", dense, dense, dtype=np.float64)
    return np.sqrt(total).astype(np.float32)


def cached(model: Path, stamp: str, shape: tuple[int, int], compute: Callable[[], Norms]) -> Norms:
    """The norms kept beside `model` if they are whole and carry its stamp; else computed, and kept.

    A folder that cannot be written only costs computing them again.
    """
    path = model.with_name(f"{model.name}.hq.safetensors")
    kept = _load(path, stamp, shape)
    if kept is not None:
        return kept
    norms = compute()
    with suppress(OSError):
        write_whole(path, save({"norms": norms}, _marks(stamp, norms)))
    return norms


def _load(path: Path, stamp: str, shape: tuple[int, int]) -> Norms | None:
    try:
        with safe_open(path, framework="numpy") as file:
            marks, norms = file.metadata() or {}, file.get_tensor("norms")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    whole = norms.shape == shape and norms.dtype == np.float32
    return norms if whole and marks == _marks(stamp, norms) else None


def _marks(stamp: str, norms: Norms) -> dict[str, str]:
    """What tells that the norms are of this very file, and none of their bits has changed."""
    digest = hashlib.blake2b(norms.tobytes(), digest_size=8).hexdigest()
    return {"schema": _SCHEMA, "stamp": stamp, "digest": digest}
