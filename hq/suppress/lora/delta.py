"""The low-rank change of each layer that scales chosen neurons."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hq.errors import HQError
from hq.neurons.factors import Factors, check_factors
from hq.neurons.space import NeuronSpace


@dataclass(frozen=True, slots=True)
class LoraDelta:
    """The neurons of one layer in ascending order, to each of which scale 1 adds (α₀ − 1)·h_i."""

    layer: int
    neurons: tuple[int, ...]
    coefficients: tuple[float, ...]  # α₀ − 1

    @property
    def rank(self) -> int:
        """The rank of the layer's LoRA: one per neuron."""
        return len(self.neurons)

    def one_hot(self, width: int, offset: int = 0) -> Float[np.ndarray, "rank width"]:
        """One row per neuron: its coefficient at its index plus `offset`, and zeros."""
        rows = np.zeros((self.rank, width), dtype=np.float32)
        rows[np.arange(self.rank), np.array(self.neurons) + offset] = self.coefficients
        return rows


def lora_deltas(factors: Factors, space: NeuronSpace) -> list[LoraDelta]:
    """The delta of each layer that has neurons to scale; neurons with α₀ = 1 are left out.

    Raises HQError for a mixture of experts, a neuron that the model lacks, an α₀ that is negative
    or not finite, and if no neuron is left.
    """
    if space.has_experts:
        raise HQError(
            "The model is a mixture of experts, whose experts are no linear layers that an adapter "
            "could change: scale its neurons at run time (hq.load and Model.scale)."
        )
    check_factors(factors, space)
    coefficients: dict[int, dict[int, float]] = defaultdict(dict)
    for (layer, index), alpha in sorted(factors.items()):
        if alpha != 1:
            coefficients[layer][index] = alpha - 1
    if not coefficients:
        raise HQError(
            "No neuron has an α other than 1, so an adapter would change nothing at any scale: "
            "name neurons, and an α such as 0."
        )
    return [LoraDelta(layer, tuple(of), tuple(of.values())) for layer, of in coefficients.items()]
