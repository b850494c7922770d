"""A GGUF file quantized by llama.cpp's own quantizer."""

from pathlib import Path
from typing import Literal

from hq.errors import HQError
from hq.llamacpp.library import library
from hq.registry import Registry
from hq.storage.atomic import atomic_file

KINDS: Registry[str] = Registry("GGUF quantization")
KINDS.add("q8_0", "LLAMA_FTYPE_MOSTLY_Q8_0")
KINDS.add("q6_k", "LLAMA_FTYPE_MOSTLY_Q6_K")
KINDS.add("q5_k_m", "LLAMA_FTYPE_MOSTLY_Q5_K_M")
KINDS.add("q4_k_m", "LLAMA_FTYPE_MOSTLY_Q4_K_M")
KINDS.add("q4_0", "LLAMA_FTYPE_MOSTLY_Q4_0")
KINDS.add("q3_k_m", "LLAMA_FTYPE_MOSTLY_Q3_K_M")
KINDS.add("q2_k", "LLAMA_FTYPE_MOSTLY_Q2_K")
KINDS.add("iq4_nl", "LLAMA_FTYPE_MOSTLY_IQ4_NL")


_DENSE = {"f32": "LLAMA_FTYPE_ALL_F32", "f16": "LLAMA_FTYPE_MOSTLY_F16"}


def quantize(source: Path, into: Path, kind: str, threads: int = 2) -> None:
    """Quantizes the file `source`, an F32 or F16 one, into the file `into`; its metadata stays.

    A kind is a recipe: llama.cpp gives each tensor a type of its own, and another where rows are no
    multiple of its block. `into` appears when it is whole.

    Raises HQError for an unknown kind, a missing llama_cpp, and whatever llama.cpp refuses.
    """
    _rewrite(source, into, f"quantized to {kind}", ftype=KINDS[kind], nthread=threads)


def dequantize(source: Path, into: Path, kind: Literal["f32", "f16"], threads: int = 2) -> None:
    """Rewrites the file `source` with all its matrices as float32 or float16; its metadata stay.

    Raises HQError for a missing llama_cpp, and whatever llama.cpp refuses.
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
    """Copies a model whose first part is `source` into one file, tensor by tensor.

    Raises HQError for a missing llama_cpp, and whatever llama.cpp refuses.
    """
    _rewrite(source, into, "merged", only_copy=True)


def _rewrite(source: Path, into: Path, how: str, ftype: str = "", **settings: bool | int) -> None:
    """By llama.cpp's quantizer with these settings, and its name of the recipe, if there is one."""
    found = library()
    params = found.llama.llama_model_quantize_default_params()
    if ftype:
        params.ftype = getattr(found.llama, ftype)
    for name, value in settings.items():
        setattr(params, name, value)
    with atomic_file(into) as path:
        found.errors.clear()
        if found.llama.llama_model_quantize(bytes(source), bytes(path), params) != 0:
            raise HQError(f"{source} cannot be {how}: {found.why()}.")
