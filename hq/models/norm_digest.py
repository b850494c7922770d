"""The norm digest: ties a GGUF file of unknown origin to a checkpoint by their norm weights.

Norm weights are never quantized, so they are equal in both. LoRA fine-tuning leaves them unchanged
too, so an equal digest is weaker evidence than an equal fingerprint. The names are those of GGUF.
Gemma's checkpoints store w and its GGUF files 1 + w: the digest is of 1 + w.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


def norm_digest(weights: Iterable[Float[np.ndarray, " d"]]) -> str:
    """Return 16 hex digits of BLAKE2b over the weights in order, each rounded to FP16."""
    digest = hashlib.blake2b(digest_size=8)
    for weight in weights:
        with np.errstate(over="ignore"):  # values beyond FP16 become infinite in both
            half = weight.astype("<f2")
        digest.update(f"{half.size}\n".encode() + half.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class NormNames:
    """The norms of one architecture, in a checkpoint and in GGUF."""

    layer: Mapping[str, str]  # path inside a layer of the checkpoint: name in GGUF
    layers: str = "layers"  # path from the decoder to its list of layers
    final: str = "norm"  # the norm after the last layer, in the checkpoint
    offset: float = 0.0  # what GGUF adds to each weight

    def ordered(self, n_layers: int) -> Iterator[str]:
        """Yield the GGUF names of all norms by layer and name, the final norm last."""
        for layer in range(n_layers):
            yield from (f"blk.{layer}.{name}.weight" for name in sorted(self.layer.values()))
        yield "output_norm.weight"

    def canonical(self, tensor: str) -> str | None:
        """Return the GGUF name of a checkpoint's tensor; None if it is no norm of the decoder."""
        inside = re.fullmatch(
            rf"{_DECODER}{re.escape(self.layers)}\.(?P<layer>\d{{1,6}})\.(?P<name>.+)\.weight",
            tensor,
        )
        if inside:
            name = self.layer.get(inside["name"])
            return None if name is None else f"blk.{int(inside['layer'])}.{name}.weight"
        is_final = re.fullmatch(rf"{_DECODER}{re.escape(self.final)}\.weight", tensor)
        return "output_norm.weight" if is_final else None


# What may precede a decoder's tensors: vision towers have layers and norms too.
_DECODER = r"(?:(?:model|language_model|transformer)\.)*"
