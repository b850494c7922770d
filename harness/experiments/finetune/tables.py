"""Columns of the tables of fine-tuning."""

from pydantic import Field

from harness.tables.schema import ENTITIES, UNITS, Row, Tables
from hq.stats.intervals import Estimate

_PRECISION = "the precision at which the model runs; the merged checkpoint of an arm is quantized"
_ARM = (
    "what the penalty acted on: h-neurons, the study's H-Neurons; matched, as many neurons of the "
    "same layers and magnitudes; plain, nothing"
)
_ARM_BASE = f"{_ARM}; base, the study's model"
_SEED = "seed of the study, and of the LoRA, its batches and the drawn neurons"


class Behaviour(Row):
    """Over-compliance before and after fine-tuning; greedy, on the same trials."""

    precision: str = Field(description=_PRECISION)
    arm: str = Field(description=_ARM)
    scenario: str = Field(description="scenario, and kind of trial if it has several")
    judge: str = Field(description="what decides whether a response complied, as in hq sweep")
    n: int = Field(description="trials; none is related to a sample or to a training text")
    entities: int = Field(description=ENTITIES)
    seed: int = Field(description=_SEED)
    before: Estimate = Field(
        description="share of trials in which the study's model complies at this precision; of the "
        "study's own questions, the share of wrong answers"
    )
    after: Estimate = Field(description="the same share for the tuned model")
    change: Estimate = Field(description="paired difference: after − before")
    p: float = Field(
        description="two-sided p of no change; Holm-corrected over the scenarios of the arm and "
        "precision"
    )
    beyond_matched: Estimate | None = Field(
        description="paired difference: after − after of the arm matched; empty for that arm"
    )
    beyond_plain: Estimate | None = Field(
        description="paired difference: after − after of the arm plain; empty for that arm"
    )
    refused_before: float = Field(description="share of refusals of the study's model")
    refused: float = Field(description="share of refusals of the tuned model")
    unclear_before: float = Field(
        description="share without a verdict, counted as not complied: the study's model"
    )
    unclear: float = Field(description="the same share for the tuned model")


class Detection(Row):
    """The study's probe, frozen, on the traces of the same answers in the tuned model."""

    precision: str = Field(description=_PRECISION)
    arm: str = Field(description=_ARM)
    n: int = Field(description="samples of the study; the same token ids in every model")
    units: int = Field(description=UNITS)
    neurons: int = Field(description="neurons of the study's set at FP16")
    seed: int = Field(description=_SEED)
    before: Estimate = Field(
        description="AUROC of the study's FP16 probes, out of fold, in the study's model at this "
        "precision"
    )
    after: Estimate = Field(description="AUROC of the same probes in the tuned model")
    change: Estimate = Field(description="paired difference: after − before")
    beyond_matched: Estimate | None = Field(
        description="paired difference: after − after of the arm matched; empty for that arm"
    )
    contribution_right: float = Field(
        description="CETT of the H-Neurons on right answers, tuned ÷ before: mean over neurons"
    )
    contribution_hallucinated: float = Field(description="the same on hallucinated answers")


class Moved(Row):
    """Identification re-run on the tuned model, on the same samples."""

    precision: str = Field(description=_PRECISION)
    arm: str = Field(description=_ARM_BASE)
    n: int = Field(description="samples of the study; the same token ids in every model")
    units: int = Field(description=UNITS)
    seed: int = Field(description=_SEED)
    neurons_before: int = Field(description="neurons of the study's set at FP16")
    neurons: int = Field(description="neurons of the set that is identified in this model")
    h_before: int = Field(description="H-Neurons of the study's set: positive weights")
    h: int = Field(description="H-Neurons of the new set")
    common: int = Field(description="neurons in both sets")
    h_common: int = Field(description="H-Neurons of both sets")
    jaccard: float | None = Field(
        description="common neurons ÷ neurons of either set; empty if both are empty"
    )
    jaccard_chance: float | None = Field(description="its expectation for random sets")
    jaccard_folds: float | None = Field(
        description="mean Jaccard index of the study's own probes of two folds, which differ by "
        "samples only: how far identification moves without a change of the model"
    )
    layer_before: float | None = Field(description="mean layer of the study's H-Neurons")
    layer: float | None = Field(description="mean layer of the new H-Neurons")
    layer_shift: float | None = Field(description="layer − layer_before")
    auroc: Estimate = Field(description="AUROC of the new probes, out of fold, in this model")
    auroc_change: Estimate = Field(
        description="paired difference: auroc − AUROC of the study's FP16 probes in its FP16 model"
    )


class Capability(Row):
    """Answers, choices and perplexity of every arm, compared with the study's model."""

    precision: str = Field(description=_PRECISION)
    arm: str = Field(description=_ARM_BASE)
    n: int = Field(description="held-out questions of the study")
    entities: int = Field(description=ENTITIES)
    choices: int = Field(description="four-way choices (MMLU format)")
    texts: int = Field(description="held-out texts")
    seed: int = Field(description=_SEED)
    accuracy: Estimate = Field(description="share of questions answered correctly, greedy")
    accuracy_change: Estimate = Field(description="paired difference from base")
    hallucinated: Estimate = Field(description="share of questions answered wrongly")
    hallucinated_change: Estimate = Field(description="paired difference from base")
    choice_accuracy: Estimate = Field(
        description="share of choices whose correct letter is the most likely"
    )
    choice_change: Estimate = Field(description="paired difference from base")
    perplexity: Estimate = Field(description="on held-out text")
    loss_change: Estimate = Field(
        description="mean loss per token − that of base, in nats: log of the ratio of perplexities"
    )


class TrainingStep(Row):
    """Terms of the loss in every step, and the capability at every checkpoint."""

    arm: str = Field(description=_ARM)
    step: int = Field(description="number of the step, from 1")
    seed: int = Field(description=_SEED)
    kept: int = Field(description="1 if the LoRA after this step is the one that is kept, else 0")
    loss: float = Field(description="CE + λ · penalty + β · KL")
    ce: float = Field(description="mean loss on right answers and refusals, nats per token")
    penalty: float = Field(description="penalty on the arm's neurons; 0 for plain")
    kl: float = Field(description="KL(study's model ‖ tuned) on neutral text, nats per token")
    contribution: float | None = Field(
        description="CETT of the H-Neurons on over-compliant responses, in units of their mean on "
        "right answers before training; only at checkpoints"
    )
    validation_loss: float | None = Field(
        description="loss on neutral text that is not trained on, nats per token; at checkpoints"
    )
    rise: float | None = Field(description="its rise since before training; at checkpoints")


TABLES: Tables = {
    "behaviour": (Behaviour, ("precision", "arm", "scenario")),
    "detection": (Detection, ("precision", "arm")),
    "moved": (Moved, ("precision", "arm")),
    "capability": (Capability, ("precision", "arm")),
    "training": (TrainingStep, ("arm", "step")),
}
