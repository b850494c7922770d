"""GGUF files as precisions, such as `gguf-q4_k_m`, which llama.cpp runs.

A suffix says how llama.cpp runs the file: `gguf-q4_k_m+kv-q8_0` runs the file of `gguf-q4_k_m`.
Without one, attention is computed in float32, without flash attention.
"""

from collections.abc import Iterable
from pathlib import Path

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.quantize import QUANTIZATIONS
from hq.gguf.types import TYPES
from hq.gguf.write import FILE_TYPE
from hq.llamacpp.attention import EXACT, Attention
from hq.llamacpp.library import load_library
from hq.registry import Registry

GGUF_PREFIX = "gguf-"
GGUF_SOURCE = "gguf-source"  # the file that a study's model was given as, of any type
GGUF_PRECISIONS = (GGUF_SOURCE, *(GGUF_PREFIX + kind for kind in (*FILE_TYPE, *QUANTIZATIONS)))

PLUS = "+"  # between the precision of the file and the suffix
SUFFIXES: Registry[Attention] = Registry("suffix of a GGUF precision")
SUFFIXES.add("fa", Attention(flash=True, keys="f16", values="f16"))
SUFFIXES.add("kv-q8_0", Attention(flash=True, keys="q8_0", values="q8_0"))
SUFFIXES.add("kv-q4_0", Attention(flash=True, keys="q4_0", values="q4_0"))
_BLOCKS = {kind.name.lower(): kind.weights for kind in TYPES.values()}


def file_precision(precision: str) -> str:
    """Return the precision of the file that a precision runs: its name without the suffix."""
    return precision.partition(PLUS)[0]


def source_precision(precision: str) -> str:
    """Return the precision that runs any file as `precision` does: `gguf-source` and the suffix."""
    return GGUF_SOURCE + precision.removeprefix(file_precision(precision))


def attention_of(precision: str) -> Attention:
    """Return how attention is computed at a precision. Raises HQError if its suffix is unknown."""
    _, plus, suffix = precision.partition(PLUS)
    return SUFFIXES[suffix] if plus else EXACT


def require_head_widths(precision: str, widths: Iterable[int], model: str | Path) -> None:
    """Raises HQError if the K-V cache of a precision cannot store heads of these widths."""
    attention, widths = attention_of(precision), set(widths)
    for kind in (attention.keys, attention.values):
        misfits = [width for width in sorted(widths) if width % _BLOCKS[kind]]
        if misfits:
            raise HQError(
                f"{precision} stores keys and values in blocks of {_BLOCKS[kind]} numbers, and "
                f"the attention heads of {model} have {misfits[0]}, which is no multiple: leave "
                f"out {PLUS}{precision.partition(PLUS)[2]}, or use {PLUS}fa."
            )


def require_kind(file: GGUFFile, precision: str) -> None:
    """Raises HQError if a file states another type than `precision`."""
    if precision == GGUF_SOURCE:
        return
    kind = precision.removeprefix(GGUF_PREFIX)
    expected = (
        FILE_TYPE[kind] if kind in FILE_TYPE else getattr(load_library().llama, QUANTIZATIONS[kind])
    )
    stated = file.metadata.get("general.file_type")
    if stated != expected:
        raise HQError(
            f"{file.path} is of file type {stated}, not {expected} ({kind}): name the precision "
            f"that it has, not {precision}."
        )
