"""The section [finetune] of a study."""

from typing import Annotated

from pydantic import Field, field_validator

from harness.studies.section import Section
from harness.studies.study import Fraction
from hq.tuning.settings import Penalty, Target, TuningSettings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_DEFAULTS = TuningSettings()


class FinetuneSection(Section):
    """Directed fine-tuning: the LoRA, the terms of its loss, training data and evaluation.

    Sources, judge, prompt form and response length of the scenarios are those of [sweep].
    """

    rank: Annotated[int, Field(ge=1)] = _DEFAULTS.rank
    """Rank of the LoRA."""
    targets: tuple[Target, ...] = _DEFAULTS.targets
    """Projections of the FFN that the LoRA changes: `gate`, `up`, `down`."""
    learning_rate: Positive = _DEFAULTS.learning_rate
    """Largest learning rate of AdamW; it rises over a tenth of the steps and then decays to 0."""
    steps: Annotated[int, Field(ge=1)] = _DEFAULTS.steps
    """Steps of each arm."""
    batch: Annotated[int, Field(ge=2, multiple_of=2)] = _DEFAULTS.batch
    """Penalised texts per step, and supervised ones, half of which are refusals; there are half as
    many neutral ones."""
    penalty: Penalty = _DEFAULTS.penalty
    """`hinge` penalises contributions above a quantile of those on right answers, `activation` all
    of them."""
    penalty_weight: Weight = _DEFAULTS.penalty_weight
    """λ, the weight of the penalty."""
    quantile: Annotated[float, Field(ge=0, le=1)] = _DEFAULTS.quantile
    """Quantile of a neuron's contribution to right answers above which the hinge penalises it."""
    kl_weight: Weight = _DEFAULTS.kl_weight
    """β, the weight of the divergence from the study's model on neutral text."""
    every: Annotated[int, Field(ge=1)] = _DEFAULTS.every
    """Steps between two checkpoints, at which the loss on neutral text is measured."""
    stop: Positive = _DEFAULTS.stop
    """Training ends if that loss rises by more than this, in nats per token."""
    text: str = ""
    """File of plain text that the model should not change on; default: its own continuations of
    openings that are part of hq."""
    share: Fraction = 0.3
    """Share of the components (questions and trials that share an entity or a wording) from which
    training data are taken; nothing is evaluated on them."""
    examples: Annotated[int, Field(ge=8)] = 60
    """Largest number of trials per kind of each scenario to train on."""
    scenarios: tuple[str, ...] = ()
    """Scenarios to train on and to evaluate; default: those of [sweep], else the study's questions
    and all scenarios of over-compliance."""
    trials: Annotated[int, Field(ge=8)] = 120
    """Trials per kind of each scenario to evaluate, or as many as there are."""
    questions: Annotated[int, Field(ge=8)] = 200
    """Held-out questions for the capability, and as many choices and texts."""

    @field_validator("targets", "scenarios")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))

    @field_validator("targets")
    @classmethod
    def _some(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if not targets:
            raise ValueError("name one of gate, up and down")
        return targets

    def settings(self, seed: int, penalised: bool) -> TuningSettings:
        """Return the settings of an arm; a plain LoRA has no penalty."""
        return TuningSettings(
            rank=self.rank,
            targets=self.targets,
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch=self.batch,
            penalty=self.penalty,
            penalty_weight=self.penalty_weight if penalised else 0.0,
            quantile=self.quantile,
            kl_weight=self.kl_weight,
            every=self.every,
            stop=self.stop,
            seed=seed,
        )
