"""GGUF files as precisions, such as `gguf-q4_k_m`, which llama.cpp runs."""

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.quantize import KINDS
from hq.gguf.write import FILE_TYPE
from hq.llamacpp.library import library

GGUF_PREFIX = "gguf-"
GGUF_SOURCE = "gguf-source"  # the file that a study's model was given as, of any type
GGUF_PRECISIONS = (GGUF_SOURCE, *(GGUF_PREFIX + kind for kind in (*FILE_TYPE, *KINDS)))


def require_kind(file: GGUFFile, precision: str) -> None:
    """Raises HQError if a file states another type than `precision`."""
    if precision == GGUF_SOURCE:
        return
    kind = precision.removeprefix(GGUF_PREFIX)
    expected = FILE_TYPE[kind] if kind in FILE_TYPE else getattr(library().llama, KINDS[kind])
    stated = file.metadata.get("general.file_type")
    if stated != expected:
        raise HQError(
            f"{file.path} is of file type {stated}, not {expected} ({kind}): name the precision "
            f"that it has, not {precision}."
        )
