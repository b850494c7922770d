"""How often each neuron is selected on random halves of the data (stability selection)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from hq.errors import HQError
from hq.neurons.features import Features
from hq.probe.identify import design_of
from hq.probe.regularisation import Design, fit_at

STABLE = 0.6
"""Selection frequency from which the tables call a neuron stable."""
_BATCH = 10  # halves that are fitted together


@dataclass(frozen=True)
class Stability:
    """Selection frequencies over subsamples.

    Subsamples are complementary pairs of random halves of the groups (Shah & Samworth 2013,
    "Variable selection with error control"). The expected number of neurons that are selected with
    a frequency of π or more, although they are selected no more often than an average neuron, is at
    most q² / ((2π − 1)·p), with q the mean number of selected neurons of p (Meinshausen & Bühlmann
    2010, "Stability selection", theorem 1).
    """

    frequency: Float[np.ndarray, " p"]
    subsamples: int
    mean_selected: float  # q

    def stable(self, threshold: float) -> int:
        """Return the number of neurons with at least this selection frequency."""
        return int((self.frequency >= threshold - 1e-9).sum())

    def expected_false(self, threshold: float) -> float:
        """Return the bound on false selections at this frequency, between 0.5 and 1."""
        if not 0.5 < threshold <= 1:
            raise HQError(f"The selection frequency {threshold:g} is not above 0.5 and up to 1.")
        return self.mean_selected**2 / ((2 * threshold - 1) * len(self.frequency))


def stability(
    features: Features,
    y: Int[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    C: float,
    *,
    pairs: int = 25,
    seed: int = 0,
    other: Features | None = None,
) -> Stability:
    """Fit on `pairs` random divisions of the groups in two halves, at the penalty of C per row.

    As a half has fewer rows, its C is larger in inverse proportion to them. Raises HQError as
    `identify` does, and if there are fewer than four groups.
    """
    if pairs < 1:
        raise HQError(f"Stability needs one pair of halves or more, not {pairs}.")
    design = design_of(features, y, groups, 2, other)
    codes = np.unique(design.groups)
    if len(codes) < 4:
        raise HQError(f"Stability needs four groups or more, and there are {len(codes)}.")
    rng = np.random.default_rng(seed)
    counts = np.zeros(design.Z.shape[1], dtype=np.int64)
    halves = [half for _ in range(pairs) for half in _halves(design, codes, rng)]
    n = len(design.y)
    for start in range(0, len(halves), _BATCH):
        batch = halves[start : start + _BATCH]
        for _, coef, _ in fit_at(design, batch, [C * n / len(half) for half in batch]):
            counts += coef != 0
    return Stability(counts / len(halves), len(halves), float(counts.sum() / len(halves)))


def _halves(
    design: Design, codes: Int[np.ndarray, " g"], rng: np.random.Generator
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Rows of two complementary halves of the groups, both with both labels."""
    for _ in range(100):
        first = np.isin(design.groups, rng.permutation(codes)[: len(codes) // 2])
        halves = np.flatnonzero(first), np.flatnonzero(~first)
        if all(len(np.unique(design.y[half])) == 2 for half in halves):
            return halves
    raise HQError("A random half of the groups nearly always has one label: gather more groups.")
