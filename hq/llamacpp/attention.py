"""How llama.cpp computes attention, and the types in which it stores keys and values."""

import os
from dataclasses import dataclass

_NO_ROTATION = "LLAMA_ATTN_ROT_DISABLE"


@dataclass(frozen=True, slots=True)
class Attention:
    """Flash attention on or off, and the types of the K-V cache, by ggml's names.

    llama.cpp converts an F32 cache to F16 for flash attention, and needs flash attention for
    quantized values. It multiplies quantized keys and values by a Hadamard matrix before it stores
    them if the width of a head is a multiple of 64 (see `settings`).
    """

    flash: bool = False
    keys: str = "f32"
    values: str = "f32"

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables that change what is stored; empty if none is set."""
        rotation = os.environ.get(_NO_ROTATION)
        is_float = self.keys.startswith("f") and self.values.startswith("f")
        return {} if rotation is None or is_float else {_NO_ROTATION: rotation}

    def describe(self, rotated: frozenset[str] = frozenset()) -> str:
        """Return what runs, for tables; `rotated` has `k` and `v` if these are rotated."""
        flash = "flash attention" if self.flash else "no flash attention"
        kinds = {"k": self.keys, "v": self.values}
        caches = (
            f"{cache.upper()} {kind}{' rotated' if cache in rotated else ''}"
            for cache, kind in kinds.items()
        )
        return ", ".join((flash, *caches))


EXACT = Attention()
"""Float32 keys and values without flash attention: as exact as the weights allow."""
