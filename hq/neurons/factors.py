"""Factors α by which the activations of neurons are scaled."""

from collections.abc import Mapping

import numpy as np

from hq.errors import HQError
from hq.neurons.space import NeuronSpace

Factors = Mapping[tuple[int, int], float]
"""(layer, index) of a neuron: α; α = 1 leaves the neuron unchanged."""


def check_factors(factors: Factors, space: NeuronSpace) -> None:
    """Raises HQError for a neuron that is not in the space, or an α that is negative or NaN."""
    for (layer, index), alpha in factors.items():
        if not (isinstance(layer, int | np.integer) and isinstance(index, int | np.integer)):
            raise HQError(
                f"Neuron ({layer}, {index}) is not in this model, which has {space}: use a "
                "NeuronSet of this model."
            )
        space.flat(layer, index)
        if not 0 <= alpha < float("inf"):
            raise HQError(f"α = {alpha} for neuron ({layer}, {index}): it must be 0 or more.")
