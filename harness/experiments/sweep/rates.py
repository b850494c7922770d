"""Rates and slopes of over-compliance, from judged responses at every α.

Matched draws of neurons are scaled on the same trials as the H-Neurons, so all differences are
paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from harness.experiments.sweep.tables import Rate, Slope
from harness.scenarios.base import TrialOutcome
from hq.stats.dose_response import (
    draw_p_value,
    estimate_curvature,
    estimate_rates,
    estimate_reduction,
    estimate_slope,
    estimate_slope_excess,
    is_monotone,
    monotonicity,
    r_squared,
    slope_difference_statistic,
    slope_statistic,
)
from hq.stats.equivalence import equivalence
from hq.stats.intervals import Estimate, smallest_detectable

NOT_MONOTONE = "not monotone: see the curve"


class JudgedSweep(NamedTuple):
    """The judged responses to trials at each α, and for each draw if there are draws."""

    outcomes: Shaped[np.ndarray, "*draws alpha trial"]
    refused: Bool[np.ndarray, "*draws alpha trial"]
    changed: Bool[np.ndarray, "*draws alpha trial"]  # the response differs from that at α = 1
    tokens: Float[np.ndarray, "*draws alpha trial"]

    @property
    def complied(self) -> Bool[np.ndarray, "*draws alpha trial"]:
        """Whether each response complied; an unclear one did not."""
        complied: Bool[np.ndarray, "*draws alpha trial"]
        complied = self.outcomes == TrialOutcome.COMPLIED
        return complied


@dataclass(frozen=True)
class Swept:
    """The judged responses of one scenario at one precision."""

    precision: str
    scenario: str
    judge: str  # its name in tables
    neurons: int  # number of scaled H-Neurons
    alphas: Sequence[float]
    control_alphas: Sequence[float]  # of the matched draws
    mixed: Bool[np.ndarray, " trial"]  # built on a question with mixed responses
    components: Shaped[np.ndarray, " trial"]  # trials of one component share an entity
    h: JudgedSweep  # [alpha, trial]
    matched: JudgedSweep  # [draw, control alpha, trial]
    seed: int  # of the draws

    @property
    def n(self) -> int:
        """Number of trials."""
        return len(self.components)

    @property
    def draws(self) -> int:
        """Number of draws of matched neurons."""
        return len(self.matched.tokens)

    @cached_property
    def entities(self) -> int:
        """Number of components."""
        return len(np.unique(self.components))

    @property
    def at_one(self) -> int:
        """Index of α = 1."""
        return self.alphas.index(1.0)


def rates(swept: Swept) -> Iterator[Rate]:
    """Yield a row per α of the H-Neurons, then of the matched draws."""
    complied = swept.h.complied
    estimates = estimate_rates(complied, swept.components)
    for a, (alpha, estimate) in enumerate(zip(swept.alphas, estimates, strict=True)):
        reduction = estimate_reduction(complied, swept.alphas, alpha, swept.components)
        at_alpha = JudgedSweep(*(values[a] for values in swept.h))
        yield _rate(swept, "h", 1, alpha, at_alpha, estimate, reduction)
    for a, alpha in enumerate(swept.control_alphas):
        at_alpha = JudgedSweep(*(values[:, a] for values in swept.matched))
        over_draws = Estimate.of_draws(at_alpha.complied.mean(axis=-1))
        yield _rate(swept, "matched", swept.draws, alpha, at_alpha, over_draws, None)


def _rate(
    swept: Swept,
    neurons: str,
    draws: int,
    alpha: float,
    judged: JudgedSweep,
    rate: Estimate,
    reduction: Estimate | None,
) -> Rate:
    return Rate(
        precision=swept.precision,
        scenario=swept.scenario,
        judge=swept.judge,
        neurons=neurons,
        alpha=alpha,
        n=swept.n,
        mixed=int(swept.mixed.sum()),
        entities=swept.entities,
        draws=draws,
        seed=swept.seed,
        rate=rate,
        unclear=float((judged.outcomes == TrialOutcome.UNCLEAR).mean()),
        changed=float(judged.changed.mean()),
        tokens=float(judged.tokens.mean()),
        reduction=reduction,
    )


def slope(swept: Swept, reference: Swept, margin: float) -> Slope:
    """Return the slope, compared with matched neurons and with the reference precision."""
    complied, at_reference = swept.h.complied, reference.h.complied
    alphas, mean_rates = swept.alphas, complied.mean(axis=1)
    all_trials = np.ones((1, swept.n))

    def over_controls(responses: Bool[np.ndarray, "alpha trial"]) -> float:
        return float(slope_statistic(responses, swept.control_alphas)(all_trials)[0])

    at_controls = complied[[alphas.index(alpha) for alpha in swept.control_alphas]]
    shared = over_controls(at_controls)
    of_draws = np.array([over_controls(drawn) for drawn in swept.matched.complied])
    estimate = estimate_slope(complied, alphas, swept.components)
    curvature = estimate_curvature(complied, alphas, swept.components)
    excess = estimate_slope_excess(
        at_controls, swept.matched.complied, swept.control_alphas, swept.components
    )
    is_reference = swept.precision == reference.precision
    tost = equivalence(
        slope_difference_statistic(complied, at_reference, alphas),
        swept.n,
        margin,
        swept.components,
        "slopes",
    )
    return Slope(
        precision=swept.precision,
        scenario=swept.scenario,
        judge=swept.judge,
        neurons=swept.neurons,
        n=swept.n,
        mixed=int(swept.mixed.sum()),
        entities=swept.entities,
        draws=swept.draws,
        seed=swept.seed,
        slope=estimate,
        detectable=_detectable(estimate),
        r_squared=r_squared(mean_rates, alphas),
        monotonicity=monotonicity(mean_rates, alphas),
        curvature=curvature,
        shape=_shape(swept, curvature),
        slope_shared=shared,
        slope_matched=Estimate.of_draws(of_draws),
        p_matched=draw_p_value(shared, of_draws),
        excess=excess,
        excess_detectable=_detectable(excess),
        change=tost.difference,
        change_detectable=None if is_reference else _detectable(tost.difference),
        change_low90=tost.low90,
        change_high90=tost.high90,
        margin=margin,
        tost_p=tost.tost_p,
        verdict="reference" if is_reference else str(tost.verdict),
        n_needed=tost.n_needed,
    )


def _detectable(estimated: Estimate) -> float | None:
    """Return the smallest detectable value; None if no trial varies, as n then says nothing."""
    return smallest_detectable(estimated) if estimated.se else None


def _shape(swept: Swept, curvature: Estimate) -> str:
    if not is_monotone(swept.h.complied, swept.alphas, swept.components):
        return NOT_MONOTONE
    return "linear" if curvature.low <= 0 <= curvature.high else "curved"
