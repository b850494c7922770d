"""Rows of the tables density and placement."""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import hypergeom

from harness.experiments.distributions.tables import DensityRow, PlacementRow
from hq.errors import HQError
from hq.neurons.neuron_set import NeuronSet
from hq.stats.equivalence import holm
from hq.stats.intervals import Estimate

_PLACEMENTS = 9999


def density(neurons: NeuronSet, precision: str) -> list[DensityRow]:
    """Return a row per layer.

    The number of H-Neurons of a layer is hypergeometric if all sets of as many neurons of the model
    are equally likely. Raises HQError if the set has no H-Neuron.
    """
    counts, widths = _counts(neurons, precision)
    h, p = int(counts.sum()), int(widths.sum())
    placed = hypergeom(p, h, widths)
    tails = np.minimum(placed.cdf(counts), placed.sf(counts - 1))
    p_values = np.minimum(1, 2 * tails)
    low, high = placed.ppf(0.025), placed.ppf(0.975)
    adjusted = holm(p_values)
    return [
        DensityRow(
            precision=precision,
            layer=layer,
            neurons=int(width),
            h_neurons=int(counts[layer]),
            per_mille=1000 * float(counts[layer] / width),
            expected=Estimate(
                value=1000 * h / p,
                low=1000 * float(low[layer] / width),
                high=1000 * float(high[layer] / width),
                n=int(width),
            ),
            p=float(p_values[layer]),
            p_holm=float(adjusted[layer]),
        )
        for layer, width in enumerate(widths.tolist())
    ]


def placement(neurons: NeuronSet, precision: str, seed: int) -> PlacementRow:
    """Return the comparison of all layers with random placements. Raises HQError as `density`."""
    counts, widths = _counts(neurons, precision)
    h, p = int(counts.sum()), int(widths.sum())
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_hypergeometric(widths, h, size=_PLACEMENTS)
    position = np.arange(len(widths)) / max(len(widths) - 1, 1)
    depth, depths = float(counts @ position / h), drawn @ position / h
    tails = ((depths <= depth + 1e-12).sum(), (depths >= depth - 1e-12).sum())
    return PlacementRow(
        precision=precision,
        h_neurons=h,
        per_mille=1000 * h / p,
        layers=int((counts > 0).sum()),
        expected_layers=float((drawn > 0).sum(axis=1).mean()),
        p=_share(_chi_squared(drawn, widths), float(_chi_squared(counts[None], widths)[0])),
        depth=depth,
        expected_depth=Estimate.of_draws(depths),
        depth_p=min(1.0, 2 * float((1 + min(tails)) / (1 + _PLACEMENTS))),
    )


def _counts(
    neurons: NeuronSet, precision: str
) -> tuple[Int[np.ndarray, " layer"], Int[np.ndarray, " layer"]]:
    """Return the numbers of H-Neurons and of neurons of each layer."""
    if not neurons.positive:
        raise HQError(
            f"No neuron of the set identified at {precision} has a positive weight, so there is no "
            "H-Neuron to place: use a study with more samples."
        )
    layers = neurons.model.n_layers
    every = neurons.model.space.locate(np.arange(neurons.model.n_neurons)).layer
    counts = np.bincount([n.layer for n in neurons.positive], minlength=layers)
    return counts, np.bincount(every, minlength=layers)


def _chi_squared(
    counts: Int[np.ndarray, "placement layer"], widths: Int[np.ndarray, " layer"]
) -> Float[np.ndarray, " placement"]:
    expected = counts.sum(axis=1, keepdims=True) * widths / widths.sum()
    return np.asarray(((counts - expected) ** 2 / expected).sum(axis=1), dtype=np.float64)


def _share(draws: Float[np.ndarray, " draws"], observed: float) -> float:
    return float((1 + (draws >= observed - 1e-9).sum()) / (1 + len(draws)))
