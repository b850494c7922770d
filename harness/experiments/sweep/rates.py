"""From judged responses at every α to rates, slopes, and what is left of an effect.

Matched draws of neurons are scaled on the same trials as the H-Neurons, so that all differences are
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
from hq.stats.bootstrap import Estimate
from hq.stats.dose_response import (
    bootstrap_rates,
    bootstrap_reduction,
    bootstrap_slope,
    draw_p_value,
    monotonicity,
    r_squared,
    slope_difference_statistic,
    slope_statistic,
)
from hq.stats.equivalence import equivalence


class JudgedSweep(NamedTuple):
    """What became of trials, for each α, and each draw of neurons where there are several."""

    outcomes: Shaped[np.ndarray, "*draws alpha trial"]
    refused: Bool[np.ndarray, "*draws alpha trial"]
    changed: Bool[np.ndarray, "*draws alpha trial"]  # the response is not that of α = 1
    tokens: Float[np.ndarray, "*draws alpha trial"]

    @property
    def complied(self) -> Bool[np.ndarray, "*draws alpha trial"]:
        """Whether they complied; an unclear response did not."""
        found: Bool[np.ndarray, "*draws alpha trial"] = self.outcomes == TrialOutcome.COMPLIED
        return found


@dataclass(frozen=True)
class Swept:
    """One scenario at one precision."""

    precision: str
    scenario: str
    neurons: int  # that are scaled at once
    alphas: Sequence[float]
    control_alphas: Sequence[float]  # of the matched draws
    components: Shaped[np.ndarray, " trial"]  # trials of one component share an entity
    h: JudgedSweep  # [alpha, trial]
    matched: JudgedSweep  # [draw, control alpha, trial]
    seed: int
    replicates: int

    @property
    def n(self) -> int:
        """Trials."""
        return len(self.components)

    @property
    def draws(self) -> int:
        """Draws of matched neurons."""
        return len(self.matched.tokens)

    @cached_property
    def entities(self) -> int:
        """Components."""
        return len(np.unique(self.components))

    @property
    def at_one(self) -> int:
        """The place of α = 1."""
        return self.alphas.index(1.0)

    @property
    def draw(self) -> tuple[int, int, Shaped[np.ndarray, " trial"]]:
        """What an interval is made with: seed, replicates, and what is resampled."""
        return self.seed, self.replicates, self.components


def rates(swept: Swept) -> Iterator[Rate]:
    """A row for each α: of the H-Neurons, then of the matched draws."""
    complied = swept.h.complied
    estimates = bootstrap_rates(complied, *swept.draw)
    for a, (alpha, estimate) in enumerate(zip(swept.alphas, estimates, strict=True)):
        reduction = bootstrap_reduction(complied, swept.alphas, alpha, *swept.draw)
        here = JudgedSweep(*(values[a] for values in swept.h))
        yield _rate(swept, "h", 1, alpha, here, estimate, reduction)
    for a, alpha in enumerate(swept.control_alphas):
        here = JudgedSweep(*(values[:, a] for values in swept.matched))
        over_draws = Estimate.of_draws(here.complied.mean(axis=-1), swept.seed)
        yield _rate(swept, "matched", swept.draws, alpha, here, over_draws, None)


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
        neurons=neurons,
        alpha=alpha,
        n=swept.n,
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
    """The dose-response, beside that of matched neurons, and beside the reference precision's."""
    ours, theirs, alphas = swept.h.complied, reference.h.complied, swept.alphas
    mean_rates = ours.mean(axis=1)
    every = np.ones((1, swept.n))

    def over_controls(complied: Bool[np.ndarray, "alpha trial"]) -> float:
        return float(slope_statistic(complied, swept.control_alphas)(every)[0])

    shared = over_controls(ours[[alphas.index(alpha) for alpha in swept.control_alphas]])
    of_draws = np.array([over_controls(drawn) for drawn in swept.matched.complied])
    estimate = bootstrap_slope(ours, alphas, *swept.draw)
    said = equivalence(
        slope_difference_statistic(ours, theirs, alphas), swept.n, margin, *swept.draw, "slopes"
    )
    return Slope(
        precision=swept.precision,
        scenario=swept.scenario,
        neurons=swept.neurons,
        n=swept.n,
        entities=swept.entities,
        draws=swept.draws,
        seed=swept.seed,
        slope=estimate,
        r_squared=r_squared(mean_rates, alphas),
        monotonicity=monotonicity(mean_rates, alphas),
        slope_shared=shared,
        slope_matched=Estimate.of_draws(of_draws, swept.seed),
        p_matched=draw_p_value(shared, of_draws),
        change=said.difference,
        change_low90=said.low90,
        change_high90=said.high90,
        margin=margin,
        tost_p=said.tost_p,
        verdict="reference" if swept.precision == reference.precision else str(said.verdict),
        n_needed=said.n_needed,
    )
