"""Factors α by which the activations of neurons are scaled."""

from collections.abc import Mapping

import numpy as np

from hq.errors import HQError
from hq.neurons.space import NeuronSpace, Position

Factors = Mapping[Position, float]
"""Position of a neuron, (layer, index) or (layer, expert, index): α; α = 1 leaves it unchanged."""


def check_factors(factors: Factors, space: NeuronSpace) -> None:
    """Raises HQError for a neuron that is not in the space, or an α that is negative or NaN."""
    for position, alpha in factors.items():
        integers = all(isinstance(part, int | np.integer) for part in position)
        if len(position) not in (2, 3) or not integers:
            raise HQError(
                f"Neuron {named(position)} is not in this model, which has {space}: use a "
                "NeuronSet of this model."
            )
        space.flat_of([position])
        if not 0 <= alpha < float("inf"):
            raise HQError(f"α = {alpha} for neuron {named(position)}: it must be 0 or more.")


def named(position: Position) -> str:
    """A position as messages write it."""
    return f"({', '.join(map(str, position))})"
