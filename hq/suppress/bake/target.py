"""The interface that baking needs to a model on disk, whatever its format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from jaxtyping import Float, UInt8

from hq.neurons.factors import Factors
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.suppress.bake.record import BakeRecord
from hq.suppress.bake.strided_scales import Patch, StridedScales


@dataclass(frozen=True, slots=True)
class NeuronWeights:
    """The dequantized weights that a neuron's stored scales multiply."""

    values: Float[np.ndarray, " n"]
    magnitudes: Float[np.ndarray, " n"]  # sums of the absolute terms that each weight adds up
    ulps: Float[np.ndarray, " n"]  # change of each weight if its scales change by one ULP

    @classmethod
    def concatenated(cls, parts: Sequence["NeuronWeights"]) -> Self:
        """The weights of several tensors, one after the other."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.magnitudes for part in parts]),
            np.concatenate([part.ulps for part in parts]),
        )


class BakeTarget(Protocol):
    """A GGUF file, or the folder of a checkpoint."""

    path: Path
    n_layers: int
    d_ff: int
    vocabulary: int

    @property
    def identity(self) -> ModelIdentity:
        """The model to which the neurons belong."""
        ...

    @property
    def record(self) -> BakeRecord | None:
        """The record of what was baked in; None for a model that is not baked."""
        ...

    def strided_scales(self, layer: int, index: int) -> list[StridedScales]:
        """The stored numbers that scale this neuron.

        Raises HQError if the format has no numbers that scale this neuron alone.
        """
        ...

    def tensor_bytes(self, tensor: str) -> UInt8[np.ndarray, " byte"]:
        """The bytes of a tensor as they are stored. Raises HQError if there is no such tensor."""
        ...

    def parts(self) -> Mapping[str, UInt8[np.ndarray, " byte"]]:
        """All bytes of the model by part, without the record, as they were before it was added."""
        ...

    def location(self, tensor: str) -> tuple[str, int]:
        """(part, offset in it) at which a tensor begins."""
        ...

    def neuron_weights(self, layer: int, index: int) -> NeuronWeights:
        """The dequantized weights that this neuron's strided scales multiply."""
        ...

    def logits(
        self, exchanges: Sequence[PromptResponse], scalings: Sequence[Factors]
    ) -> list[Float[np.ndarray, "token vocab"]]:
        """Logits of the tokens of all responses, under each scaling at run time."""
        ...

    def bake(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> BakeRecord:
        """Write the patched model with its record, and return the record with its digests."""
        ...

    def restore(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> None:
        """Write the model without its record. Raises HQError if that is not the original."""
        ...
