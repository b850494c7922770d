"""Transfer of the probe from the study's questions to the scenarios of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from harness.experiments.sweep.tables import Transfer
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.controls import fit_draws, read_control
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.stats.equivalence import holm, permutation_p

MIN_RESPONSES = 8  # of either outcome, for an AUROC
_MIN_COMPONENTS = 2  # with either outcome, for its interval


@dataclass(frozen=True)
class Target:
    """Responses of a scenario that complied or resisted, and their CETT at one precision."""

    scenario: str
    complied: Bool[np.ndarray, " n"]
    components: Shaped[np.ndarray, " n"]
    cett: Features

    @property
    def is_sufficient(self) -> bool:
        """Whether there are enough responses of either outcome for an AUROC with an interval."""
        return all(
            chosen.sum() >= MIN_RESPONSES
            and len(np.unique(self.components[chosen])) >= _MIN_COMPONENTS
            for chosen in (self.complied, ~self.complied)
        )


def transfer(
    precision: str,
    neurons: NeuronSet,
    X_train: Float[np.ndarray, "m p"],
    y_train: Int[np.ndarray, " m"],
    draws: Int[np.ndarray, "draws k"],
    targets: Sequence[Target],
    seed: int,
) -> list[Transfer]:
    """Return a row per target with enough responses of either outcome.

    Probes on matched neurons are fitted at this precision, on all samples of the study.
    """
    evaluated = [target for target in targets if target.is_sufficient]
    probes = fit_draws(X_train, y_train, draws)
    scores = [neurons.score(t.cett) for t in evaluated]
    controls = [read_control(probes, draws, t.cett.values, t.complied) for t in evaluated]
    estimates = [
        estimate_auroc(own, t.complied, t.components)
        for own, t in zip(scores, evaluated, strict=True)
    ]
    p_labels = holm([_permuted(own, t, seed) for own, t in zip(scores, evaluated, strict=True)])
    p_draws = holm([_share(c.per_draw, e.value) for c, e in zip(controls, estimates, strict=True)])
    return [
        Transfer(
            precision=precision,
            scenario=target.scenario,
            n=len(target.complied),
            entities=len(np.unique(target.components)),
            complied=int(target.complied.sum()),
            draws=len(draws),
            seed=seed,
            auroc=estimates[t],
            auroc_matched=controls[t].estimate,
            difference=estimate_auroc_difference(
                scores[t], controls[t].decisions, target.complied, target.components
            ),
            p_labels=float(p_labels[t]),
            p_draws=float(p_draws[t]),
        )
        for t, target in enumerate(evaluated)
    ]


def _permuted(scores: Float[np.ndarray, " n"], target: Target, seed: int) -> float:
    """P under permuted labels, with one response per entity: others are not independent."""
    rows = np.unique(target.components, return_index=True)[1]
    labels = target.complied[rows]
    return permutation_p(scores[rows], labels, seed) if 0 < labels.sum() < len(labels) else 1.0


def _share(reached: Float[np.ndarray, " draws"], own: float) -> float:
    """P(a matched draw reaches the probe's AUROC); the probe counts as one of the draws."""
    return (1 + int((reached >= own).sum())) / (1 + len(reached))
