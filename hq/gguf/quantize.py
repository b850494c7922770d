"""A GGUF file quantized by llama.cpp's own quantizer."""

from pathlib import Path

from hq.errors import HQError
from hq.llama.library import library
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


def quantize(source: Path, into: Path, kind: str, threads: int = 2) -> None:
    """Quantizes the file `source`, an F32 or F16 one, into the file `into`; its metadata stays.

    A kind is a recipe: llama.cpp gives each tensor a type of its own, and another where rows are no
    multiple of its block. `into` appears when it is whole.

    Raises HQError for an unknown kind, a missing llama_cpp, and whatever llama.cpp refuses.
    """
    name = KINDS[kind]
    found = library()
    params = found.llama.llama_model_quantize_default_params()
    params.ftype = getattr(found.llama, name)
    params.nthread = threads
    with atomic_file(into) as path:
        found.errors.clear()
        if found.llama.llama_model_quantize(bytes(source), bytes(path), params) != 0:
            raise HQError(f"{source} cannot be quantized to {kind}: {found.why()}.")
