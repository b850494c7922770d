"""GGUF files as precisions: `gguf-q4_k_m` and its kin, run by llama.cpp."""

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.quantize import QUANTIZATIONS
from hq.gguf.write import FILE_TYPE
from hq.llamacpp.library import load_library

PREFIX = "gguf-"
SOURCE = "gguf-source"  # the file that a study's model was given as, whatever is in it
NAMES = (SOURCE, *(PREFIX + kind for kind in (*FILE_TYPE, *QUANTIZATIONS)))


def require_kind(file: GGUFFile, precision: str) -> None:
    """Raises HQError where a file says that it is of another kind than `precision`."""
    if precision == SOURCE:
        return
    kind = precision.removeprefix(PREFIX)
    wanted = (
        FILE_TYPE[kind] if kind in FILE_TYPE else getattr(load_library().llama, QUANTIZATIONS[kind])
    )
    found = file.metadata.get("general.file_type")
    if found != wanted:
        raise HQError(
            f"{file.path} is of file type {found}, not {wanted} ({kind}): refusing to report "
            f"another precision under the name {precision}."
        )
