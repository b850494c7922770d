"""The settings of a training run."""

from dataclasses import dataclass
from typing import Literal

Target = Literal["gate", "up", "down"]
Penalty = Literal["hinge", "activation"]


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """Size of the LoRA, optimisation, and the three terms of the loss.

    The loss is CE + `penalty_weight` · penalty + `kl_weight` · KL. `batch` is the number of
    penalised texts per step, and of supervised ones, half of which are refusals; there are half as
    many neutral ones.
    """

    rank: int = 8
    targets: tuple[Target, ...] = ("gate", "up", "down")
    learning_rate: float = 1e-3
    steps: int = 100
    batch: int = 4
    penalty: Penalty = "hinge"
    penalty_weight: float = 1.0
    quantile: float = 0.5  # of the reference's contributions on right answers: the hinge's target
    kl_weight: float = 1.0
    every: int = 20  # steps between two checkpoints, at which the capability is measured
    stop: float = 0.1  # largest rise of the loss on validation text, in nats per token
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear rise in the first tenth, then a decay."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (self.steps - step) / (self.steps - rise)
