"""Repair of a probe at another precision, without labels, on texts that are traced there.

Each repair returns a NeuronSet for the other precision. Its arguments are the set, and the values
of the set's neurons over the same unlabelled texts at the reference and at the other precision,
[text, neuron]. Labels of these texts are not used, and the texts must not be those on which the
repaired set is evaluated.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from hq.errors import HQError
from hq.neurons.neuron_set import NeuronSet

Values = Float[np.ndarray, "text neuron"]
LEAST_TEXTS = 2  # a scale needs two

_PENALTIES = 10.0 ** np.arange(-3, 4)
"""Ridge penalties per text, of which `reweighted` chooses one without labels."""


class _Moments(NamedTuple):
    mean: Float[np.ndarray, " neuron"]
    scale: Float[np.ndarray, " neuron"]

    @classmethod
    def of(cls, values: Values) -> "_Moments":
        return cls(values.mean(axis=0), values.std(axis=0))


def standardised(neurons: NeuronSet, _: Values, new: Values) -> NeuronSet:
    """Replace mean and scale of each neuron by those of the texts at the new precision.

    It needs no text at the reference. A neuron that is constant keeps its scale.
    """
    moments, own = _Moments.of(new), _parameters(neurons)
    return _with(neurons, moments.mean, np.where(moments.scale > 0, moments.scale, own.scale))


def aligned(neurons: NeuronSet, reference: Values, new: Values) -> NeuronSet:
    """Apply each neuron's change of mean and scale between the precisions to its standardisation.

    With a the ratio of the scales of the texts at the two precisions, the mean becomes
    mean_new + a·(mean − mean_reference) and the scale a·scale. It is exact if the change is an
    affine function of each neuron with a positive factor, whatever the texts.
    """
    before, after, own = _Moments.of(reference), _Moments.of(new), _parameters(neurons)
    changed = (before.scale > 0) & (after.scale > 0)
    ratio = np.where(changed, after.scale / np.where(changed, before.scale, 1), 1)
    return _with(neurons, after.mean + ratio * (own.mean - before.mean), ratio * own.scale)


def reweighted(neurons: NeuronSet, reference: Values, new: Values) -> NeuronSet:
    """Align, then fit weights with which the new values reproduce the scores at the reference.

    Noise from quantization makes a neuron's value less reliable, and errors of several neurons are
    correlated. The weights minimise Σ (score at the reference − score at the new precision)² +
    n·λ·‖weights − own weights‖² over the n texts, and λ the exact leave-one-out error. So the
    reference's scores are the target, and no label is needed.
    """
    moved = aligned(neurons, reference, new)
    own, parameters = _parameters(neurons), _parameters(moved)
    Z = (new - parameters.mean) / parameters.scale
    target = (reference - own.mean) / own.scale @ own.weight
    Z_mean, residual = Z.mean(axis=0), target - Z @ own.weight
    change = _ridge(Z - Z_mean, residual - residual.mean())
    weight = own.weight + change
    shift = float(target.mean() - Z_mean @ weight)
    updated = tuple(
        neuron.model_copy(update={"weight": float(w)})
        for neuron, w in zip(moved.neurons, weight, strict=True)
    )
    return moved.model_copy(update={"neurons": updated, "intercept": neurons.intercept + shift})


Repair = Callable[[NeuronSet, Values, Values], NeuronSet]
REPAIRS: dict[str, Repair] = {
    "standardised": standardised,
    "aligned": aligned,
    "reweighted": reweighted,
}


def require_texts(n: int) -> None:
    """Raises HQError if the texts are too few for a scale."""
    if n < LEAST_TEXTS:
        raise HQError(f"A repair needs {LEAST_TEXTS} unlabelled texts or more, not {n}: add some.")


class _Parameters(NamedTuple):
    weight: Float[np.ndarray, " neuron"]
    mean: Float[np.ndarray, " neuron"]
    scale: Float[np.ndarray, " neuron"]


def _parameters(neurons: NeuronSet) -> _Parameters:
    fields = [[n.weight, n.mean, n.scale] for n in neurons.neurons]
    return _Parameters(*np.array(fields, dtype=np.float64).reshape(-1, 3).T)


def _with(
    neurons: NeuronSet, mean: Float[np.ndarray, " neuron"], scale: Float[np.ndarray, " neuron"]
) -> NeuronSet:
    updated = tuple(
        neuron.model_copy(update={"mean": float(m), "scale": float(s)})
        for neuron, m, s in zip(neurons.neurons, mean, scale, strict=True)
    )
    return neurons.model_copy(update={"neurons": updated})


def _ridge(
    Z: Float[np.ndarray, "text neuron"], y: Float[np.ndarray, " text"]
) -> Float[np.ndarray, " neuron"]:
    """Return the ridge coefficients with the penalty of least leave-one-out error.

    With the hat matrix H of a penalty, the error of text i is (y_i − ŷ_i) / (1 − 1/n − H_ii).
    """
    n = len(y)
    U, s, Vt = np.linalg.svd(Z, full_matrices=False)
    best, smallest = np.zeros(Z.shape[1]), np.inf
    for penalty in _PENALTIES:
        shrunk = s**2 / (s**2 + n * penalty)
        leverage = 1 / n + (U**2) @ shrunk
        error = float((((y - U @ (shrunk * (U.T @ y))) / (1 - leverage)) ** 2).mean())
        if error < smallest:
            best, smallest = Vt.T @ (s / (s**2 + n * penalty) * (U.T @ y)), error
    return best
