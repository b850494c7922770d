"""What ties a GGUF file of unknown origin to a checkpoint: its norm weights, never quantized.

Frozen norms survive LoRA fine-tuning too, so the digest is weaker than a fingerprint. Weights are
named as
GGUF names them. Gemma's checkpoints store w and its GGUF files 1 + w: the digest is of 1 + w.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


def norm_digest(weights: Iterable[Float[np.ndarray, " d"]]) -> str:
    """16 hex digits over the weights, in order, each rounded to FP16."""
    digest = hashlib.blake2b(digest_size=8)
    for weight in weights:
        with np.errstate(over="ignore"):  # too large for FP16 is infinite on either side
            half = weight.astype("<f2")
        digest.update(f"{half.size}\n".encode() + half.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class NormNames:
    """The norms of one family: their names inside a layer of a checkpoint, to GGUF's.

    `final` is the name of the norm after the last layer, `offset` what GGUF adds to each weight.
    """

    layer: Mapping[str, str]
    final: str = "norm"
    offset: float = 0.0

    def ordered(self, n_layers: int) -> Iterator[str]:
        """GGUF names of all norms, by (layer, name), the final one last."""
        for layer in range(n_layers):
            yield from (f"blk.{layer}.{name}.weight" for name in sorted(self.layer.values()))
        yield "output_norm.weight"

    def canonical(self, tensor: str) -> str | None:
        """The GGUF name of a checkpoint's tensor; None when it is no norm of the decoder."""
        inside = _INSIDE_LAYER.fullmatch(tensor)
        if inside:
            name = self.layer.get(inside["name"])
            return None if name is None else f"blk.{int(inside['layer'])}.{name}.weight"
        outside = _OUTSIDE.fullmatch(tensor)
        return "output_norm.weight" if outside and outside["name"] == self.final else None


_DECODER = r"(?:(?:model|language_model|transformer)\.)*"
_INSIDE_LAYER = re.compile(_DECODER + r"(?:layers|h)\.(?P<layer>\d{1,6})\.(?P<name>.+)\.weight")
_OUTSIDE = re.compile(_DECODER + r"(?P<name>\w+)\.weight")
