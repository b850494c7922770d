"""How far a change of a model moves the weights of each neuron, and whether some move less.

The change is tuning or quantization. A neuron is its row of W_gate, its row of W_up and its column
of W_down; each moves by Δ = 1 − cos. Z-scores of the parts are averaged and ranked, as in arXiv
2512.01797: a small rank means a large change. The unit of all intervals and tests is the neuron.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from hq.errors import HQError
from hq.models.ffn_weights import FFN
from hq.probe.controls import random_neurons
from hq.stats.intervals import Estimate, estimate, estimate_mean, mean_statistic
from hq.stats.permutation import rank_p

RANDOM_DRAWS = 9999
"""Draws of neurons from the whole model, for p-values."""


def part_names(parts: int) -> tuple[str, ...]:
    """Return the names of a neuron's parts, in the order of `FFN.parts`."""
    return ("up", "down") if parts == 2 else ("gate", "up", "down")


def neuron_changes(
    source: FFN, variant: FFN, order: Int[Tensor, " d_ff"] | None = None
) -> Float[np.ndarray, "part d_ff"]:
    """Return Δ = 1 − cos of each part of each neuron of a layer, in the order of `FFN.parts`.

    It is computed as ½·‖a/‖a‖ − b/‖b‖‖², which is exactly 0 for equal vectors. Between a zero
    vector and another one, Δ is 1. `order` has the variant's index of each neuron of the source.
    """
    placed = variant if order is None else variant.at(order)
    pairs = zip(source.parts, placed.parts, strict=True)
    # In one memory layout, lengths of equal vectors are equal to the bit.
    return np.stack([_change(a.double().contiguous(), b.double().contiguous()) for a, b in pairs])


def _change(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float[np.ndarray, " n"]:
    lengths = [torch.linalg.vector_norm(rows, dim=1, keepdim=True) for rows in (a, b)]
    units = [
        rows / torch.where(length > 0, length, 1.0)
        for rows, length in zip((a, b), lengths, strict=True)
    ]
    change = (units[0] - units[1]).square().sum(1) / 2
    vanished = ((lengths[0] > 0) != (lengths[1] > 0))[:, 0]
    result: Float[np.ndarray, " n"] = torch.where(vanished, 1.0, change).numpy()
    return result


def model_changes(
    pairs: Iterable[tuple[FFN, FFN, Int[Tensor, " d_ff"] | None]],
) -> Float[np.ndarray, "part p"]:
    """Return `neuron_changes` of all layers; each has source, variant and order."""
    return np.concatenate([neuron_changes(*layer) for layer in pairs], axis=1)


@dataclass(frozen=True, eq=False)
class ChangeScale:
    """Mean and standard deviation over neurons of each part's Δ."""

    mean: Float[np.ndarray, " part"]
    deviation: Float[np.ndarray, " part"]

    @classmethod
    def of(cls, changes: Float[np.ndarray, "part p"]) -> Self:
        """Return the scale of these changes. Raises HQError if all neurons change alike."""
        scale = cls(changes.mean(axis=1), changes.std(axis=1))
        if not (scale.deviation > 0).any():
            raise HQError(
                "All FFN weights of the two checkpoints have the same directions, so no neuron "
                "changed more than another: name a model whose FFN weights were tuned."
            )
        return scale

    def z(self, changes: Float[np.ndarray, "part p"]) -> Float[np.ndarray, " p"]:
        """Return the mean z-score of each neuron over the parts that vary on this scale."""
        varies = self.deviation > 0
        centred = changes[varies] - self.mean[varies, None]
        z: Float[np.ndarray, " p"] = (centred / self.deviation[varies, None]).mean(axis=0)
        return z


def normalised_ranks(z: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Return ranks in (0, 1]: the largest change has the smallest rank; ties share their mean."""
    ranks: Float[np.ndarray, " p"] = rankdata(-z, method="average") / len(z)
    return ranks


class RankTest(NamedTuple):
    """The mean normalised rank of some neurons, compared with all and with matched neurons.

    One-sided p-values: `p_stable` that a mean rank of as many other neurons is as large by chance,
    `p_changed` that one is as small.
    """

    rank: Estimate
    matched: Estimate  # mean over draws, and the range of 95% of them
    difference: Estimate  # of each neuron's rank from the mean rank of its matched ones
    p_stable: float
    p_changed: float
    p_stable_matched: float
    p_changed_matched: float


def rank_test(
    ranks: Float[np.ndarray, " p"],
    chosen: Int[np.ndarray, " k"],
    matched: Int[np.ndarray, "draws k"],
    seed: int,
) -> RankTest:
    """Compare the mean rank of chosen neurons with `RANDOM_DRAWS` draws of k out of all neurons.

    Column j of `matched` has neurons that match `chosen[j]`. Raises HQError for fewer than two
    chosen neurons.
    """
    own = ranks[chosen]
    drawn = random_neurons(len(chosen), len(ranks), RANDOM_DRAWS, seed)
    by_chance, by_match = ranks[drawn].mean(axis=1), ranks[matched].mean(axis=1)
    return RankTest(
        estimate(mean_statistic(own), len(own), name="mean rank", scale="logit"),
        Estimate.of_draws(by_match),
        estimate_mean(own - ranks[matched].mean(axis=0)),
        *_both_sides(own.mean(), by_chance),
        *_both_sides(own.mean(), by_match),
    )


def _both_sides(observed: float, null: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """Return the one-sided p-values of an observed value as large, and as small."""
    both = np.array([observed, -observed]), np.stack([null, -null], axis=1)
    large, small = rank_p(*both).tolist()
    return large, small
