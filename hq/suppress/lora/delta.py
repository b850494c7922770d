"""What is to become of each layer's neurons, in the form that a LoRA has."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hq.errors import HQError
from hq.neurons.factors import check_factors
from hq.neurons.space import NeuronSpace


@dataclass(frozen=True, slots=True)
class LoraDelta:
    """The neurons of one layer, in order, and what each is to gain at scale 1: (α₀ − 1)·h_i."""

    layer: int
    neurons: tuple[int, ...]
    gains: tuple[float, ...]  # α₀ − 1

    @property
    def rank(self) -> int:
        """Of the layer's LoRA: one for each neuron."""
        return len(self.neurons)

    def one_hot(self, width: int, offset: int = 0) -> Float[np.ndarray, "rank width"]:
        """A row a neuron: its gain, `offset` places past its own."""
        rows = np.zeros((self.rank, width), dtype=np.float32)
        rows[np.arange(self.rank), np.array(self.neurons) + offset] = self.gains
        return rows


def lora_deltas(factors: Mapping[tuple[int, int], float], space: NeuronSpace) -> list[LoraDelta]:
    """The deltas of those layers that have any; neurons with α₀ = 1 are left out.

    Raises HQError for a neuron that the model lacks, an α₀ that is no number from 0 up, and where
    nothing is left.
    """
    check_factors(factors, space)
    gains: dict[int, dict[int, float]] = defaultdict(dict)
    for (layer, index), alpha in sorted(factors.items()):
        if alpha != 1:
            gains[layer][index] = alpha - 1
    if not gains:
        raise HQError(
            "No neuron has another α than 1, so an adapter would change nothing at any scale: "
            "give neurons, and an α such as 0."
        )
    return [LoraDelta(layer, tuple(of), tuple(of.values())) for layer, of in gains.items()]
