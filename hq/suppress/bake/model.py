"""What baking asks of a model on disk, whatever its format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from jaxtyping import Float, UInt8

from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.neurons.space import NeuronSpace
from hq.suppress.bake.record import BakeRecord
from hq.suppress.bake.strided_scales import Patch, StridedScales

Factors = Mapping[tuple[int, int], float]  # α by (layer, index)


@dataclass(frozen=True, slots=True)
class NeuronWeights:
    """A neuron's dequantized weights that α scales.

    `size` is what each is a sum of, without signs; `unit` what it moves by when each of its scales
    moves by one unit of its format.
    """

    values: Float[np.ndarray, " n"]
    size: Float[np.ndarray, " n"]
    unit: Float[np.ndarray, " n"]

    @classmethod
    def joined(cls, parts: Sequence["NeuronWeights"]) -> Self:
        """One after the other."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.size for part in parts]),
            np.concatenate([part.unit for part in parts]),
        )


class BakeTarget(Protocol):
    """A GGUF file, or a checkpoint's folder."""

    path: Path
    space: NeuronSpace
    vocabulary: int

    @property
    def identity(self) -> ModelIdentity:
        """Whose neurons it has."""
        ...

    @property
    def record(self) -> BakeRecord | None:
        """What was baked into it; None where nothing was."""
        ...

    def strips(self, layer: int, index: int) -> list[StridedScales]:
        """The numbers that scale this neuron. HQError where its format has none that only do."""
        ...

    def stored(self, tensor: str) -> UInt8[np.ndarray, " byte"]:
        """A tensor's bytes, as they lie in the file."""
        ...

    def parts(self) -> Mapping[str, UInt8[np.ndarray, " byte"]]:
        """All bytes but those of the record, in named parts, as they were before it was added."""
        ...

    def place(self, tensor: str) -> tuple[str, int]:
        """Of which part a tensor is, and where in it."""
        ...

    def weights(self, layer: int, index: int) -> NeuronWeights:
        """The weights that this neuron's strips scale, dequantized."""
        ...

    def logits(
        self, exchanges: Sequence[PromptResponse], scalings: Sequence[Factors]
    ) -> list[Float[np.ndarray, "token vocab"]]:
        """Of all responses' tokens, under each scaling at run time."""
        ...

    def bake(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> BakeRecord:
        """Writes the patched model with the record in it, to which digests are added."""
        ...

    def restore(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> None:
        """Writes the model without its record. HQError where that is not the original."""
        ...
