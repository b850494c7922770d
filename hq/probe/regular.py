"""Regular neurons: those without a weight in a NeuronSet, with which its H-Neurons are compared."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Int

from hq.neurons.neuron_set import NeuronSet
from hq.probe.controls import matched_neurons, outliers, random_neurons


class RegularNeurons:
    """Draws of neurons that have no weight in a set.

    Args:
        neurons: The set.
        magnitudes: Mean contribution of every neuron, which matched neurons share.
        missing: Flat indices of neurons that the traced variant lacks, which are never drawn.
    """

    def __init__(
        self,
        neurons: NeuronSet,
        magnitudes: Float[np.ndarray, " p"],
        missing: Iterable[int] = (),
    ) -> None:
        self._space = neurons.model.space
        self._magnitudes = magnitudes
        self.mask: Bool[np.ndarray, " p"] = np.ones(neurons.model.n_neurons, dtype=bool)
        self.mask[neurons.flat] = False
        self.mask[list(missing)] = False

    def matched(
        self, chosen: Int[np.ndarray, " k"], draws: int, seed: int
    ) -> Int[np.ndarray, "draws k"]:
        """Draw neurons of the same blocks and magnitudes; column j matches `chosen[j]`."""
        exclude = np.flatnonzero(~self.mask)
        return matched_neurons(chosen, self._magnitudes, self._space, draws, seed, exclude=exclude)

    def random(self, k: int, draws: int, seed: int) -> Int[np.ndarray, "draws k"]:
        """Draw k neurons of any block, without super-neurons."""
        exclude = np.flatnonzero(~self.mask | outliers(self._magnitudes))
        return random_neurons(k, len(self.mask), draws, seed, exclude)
