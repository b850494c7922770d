"""Factors α by which the activations of neurons are scaled."""

from collections.abc import Mapping

import numpy as np

from hq.errors import HQError

Factors = Mapping[tuple[int, int], float]
"""(layer, index) of a neuron: α; 1 leaves it as it is."""


def check_factors(factors: Mapping[tuple[int, int], float], layers: int, d_ff: int) -> None:
    """Raises HQError for a neuron that the model lacks, or an α that is no number from 0 up."""
    for (layer, index), alpha in factors.items():
        whole = isinstance(layer, int | np.integer) and isinstance(index, int | np.integer)
        if not whole or not 0 <= layer < layers or not 0 <= index < d_ff:
            raise HQError(
                f"Neuron ({layer}, {index}) is not in this model, which has {layers} layers "
                f"of {d_ff}: use a NeuronSet of this model."
            )
        if not 0 <= alpha < float("inf"):
            raise HQError(f"α = {alpha} for neuron ({layer}, {index}): it must be 0 or more.")
