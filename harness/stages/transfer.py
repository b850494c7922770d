"""Stage `transfer`: the probe found on one set of questions, read in other scenarios."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from harness.schema import Transfer
from hq.controls import ridge_probe
from hq.equivalence import holm, permutation_p
from hq.neurons import NeuronSet
from hq.stats import Estimate, auroc, bootstrap_auroc, bootstrap_auroc_difference

LEAST = 8  # responses of either kind: fewer say nothing


@dataclass(frozen=True)
class Target:
    """Responses of a scenario that complied or resisted, and their CETT at one precision."""

    scenario: str
    complied: Bool[np.ndarray, " n"]
    components: Shaped[np.ndarray, " n"]
    X: Float[np.ndarray, "n p"]

    @property
    def telling(self) -> bool:
        """Whether there are enough of either kind for an AUROC."""
        return LEAST <= int(self.complied.sum()) <= len(self.complied) - LEAST


def transfer(
    precision: str,
    neurons: NeuronSet,
    X_train: Float[np.ndarray, "m p"],
    y_train: Int[np.ndarray, " m"],
    draws: Int[np.ndarray, "draws k"],
    targets: Sequence[Target],
    seed: int,
    replicates: int,
) -> list[Transfer]:
    """A row for every target that has enough responses of either kind.

    Matched probes are fitted on the training rows that the probe itself was found on, here.
    """
    probes = [ridge_probe(X_train[:, draw], y_train) for draw in draws]
    told = [target for target in targets if target.telling]
    reached: dict[str, Float[np.ndarray, " draws"]] = {}
    scores: dict[str, Float[np.ndarray, " n"]] = {}
    decisions: dict[str, Float[np.ndarray, "draws n"]] = {}
    for target in told:
        name = target.scenario
        scores[name] = neurons.score(target.X)
        decisions[name] = np.stack(
            [
                probe.decision_function(target.X[:, draw].astype(np.float64))
                for probe, draw in zip(probes, draws, strict=True)
            ]
        )
        reached[name] = np.array([auroc(row, target.complied) for row in decisions[name]])
    p_labels = holm([_permuted(scores[t.scenario], t, seed) for t in told])
    p_draws = holm([_share(reached[t.scenario], scores, t) for t in told])
    return [
        Transfer(
            precision=precision,
            scenario=target.scenario,
            n=len(target.complied),
            entities=len(np.unique(target.components)),
            complied=int(target.complied.sum()),
            draws=len(draws),
            seed=seed,
            auroc=bootstrap_auroc(
                scores[target.scenario], target.complied, seed, replicates, target.components
            ),
            auroc_matched=Estimate.of_draws(reached[target.scenario], seed),
            difference=bootstrap_auroc_difference(
                scores[target.scenario],
                decisions[target.scenario],
                target.complied,
                seed,
                replicates,
                target.components,
            ),
            p_labels=float(labels),
            p_draws=float(drawn),
        )
        for target, labels, drawn in zip(told, p_labels, p_draws, strict=True)
    ]


def _permuted(scores: Float[np.ndarray, " n"], target: Target, seed: int) -> float:
    """P by permuting labels, of one response an entity: others are no independent evidence."""
    rows = np.unique(target.components, return_index=True)[1]
    labels = target.complied[rows]
    return permutation_p(scores[rows], labels, seed) if 0 < labels.sum() < len(labels) else 1.0


def _share(
    reached: Float[np.ndarray, " draws"],
    scores: Mapping[str, Float[np.ndarray, " n"]],
    target: Target,
) -> float:
    """P(a matched draw reaches the probe's AUROC), the probe counted as one of the draws."""
    own = auroc(scores[target.scenario], target.complied)
    return (1 + int((reached >= own).sum())) / (1 + len(reached))
