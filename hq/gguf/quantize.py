"""Quantize, dequantize and merge GGUF files with llama.cpp's own quantizer."""

from pathlib import Path
from typing import Literal

from hq.errors import HQError
from hq.llamacpp.library import load_library
from hq.registry import Registry
from hq.storage.atomic import atomic_file

QUANTIZATIONS: Registry[str] = Registry("GGUF quantization")
QUANTIZATIONS.add("q8_0", "LLAMA_FTYPE_MOSTLY_Q8_0")
QUANTIZATIONS.add("q6_k", "LLAMA_FTYPE_MOSTLY_Q6_K")
QUANTIZATIONS.add("q5_k_m", "LLAMA_FTYPE_MOSTLY_Q5_K_M")
QUANTIZATIONS.add("q4_k_m", "LLAMA_FTYPE_MOSTLY_Q4_K_M")
QUANTIZATIONS.add("q4_0", "LLAMA_FTYPE_MOSTLY_Q4_0")
QUANTIZATIONS.add("q3_k_m", "LLAMA_FTYPE_MOSTLY_Q3_K_M")
QUANTIZATIONS.add("q2_k", "LLAMA_FTYPE_MOSTLY_Q2_K")
QUANTIZATIONS.add("iq4_nl", "LLAMA_FTYPE_MOSTLY_IQ4_NL")

_DENSE = {"f32": "LLAMA_FTYPE_ALL_F32", "f16": "LLAMA_FTYPE_MOSTLY_F16"}


def quantize(source: Path, into: Path, kind: str, threads: int = 2) -> None:
    """Quantize the F32 or F16 file `source` into the file `into`, keeping its metadata.

    A kind is a recipe: llama.cpp chooses a type for each tensor, and another type where rows are
    not a multiple of its block. `into` appears only when it is complete.

    Raises HQError if the kind is unknown, if llama-cpp-python is missing, or if llama.cpp fails.
    """
    _rewrite(source, into, f"quantized to {kind}", ftype=QUANTIZATIONS[kind], nthread=threads)


def dequantize(source: Path, into: Path, kind: Literal["f32", "f16"], threads: int = 2) -> None:
    """Rewrite the file `source` with all matrices in float32 or float16, keeping its metadata.

    Raises HQError if llama-cpp-python is missing or llama.cpp fails.
    """
    _rewrite(
        source,
        into,
        f"rewritten as {kind}",
        ftype=_DENSE[kind],
        nthread=threads,
        allow_requantize=True,
    )


def merge(source: Path, into: Path) -> None:
    """Copy the split model whose first part is `source` into one file.

    Raises HQError if llama-cpp-python is missing or llama.cpp fails.
    """
    _rewrite(source, into, "merged", only_copy=True)


def _rewrite(source: Path, into: Path, what: str, ftype: str = "", **settings: bool | int) -> None:
    """Run llama.cpp's quantizer; `ftype` is its name of the recipe, `what` is for the message."""
    library = load_library()
    params = library.llama.llama_model_quantize_default_params()
    if ftype:
        params.ftype = getattr(library.llama, ftype)
    for name, value in settings.items():
        setattr(params, name, value)
    with atomic_file(into) as path:
        library.errors.clear()
        if library.llama.llama_model_quantize(bytes(source), bytes(path), params) != 0:
            raise HQError(f"{source} cannot be {what}: {library.reason()}.")
