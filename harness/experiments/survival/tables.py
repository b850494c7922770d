"""Columns of the tables of survival."""

from pydantic import Field

from harness.tables.schema import Row, Tables
from hq.stats.bootstrap import Estimate


class Survival(Row):
    """How well FP16 alone tells which neurons a precision hurts."""

    precision: str = Field(description="how the checkpoint is run")
    target: str = Field(
        description="by what a neuron is hurt: error, the relative error of its contribution; "
        "rank, how far its rank within the layer moves"
    )
    layers: int = Field(description="layers, each predicted from others: what intervals resample")
    n: int = Field(description="neurons that have an error here")
    hurt: int = Field(description="those that are hurt: the worst quarter of each layer")
    texts: int = Field(description="held-out texts that errors are measured on")
    seed: int = Field(description="seed of the bootstrap")
    auroc: Estimate = Field(
        description="AUROC of the prediction, learnt from other layers at the other precisions"
    )
    auroc_small: Estimate = Field(
        description="AUROC of a rule without a fit: the smaller the contribution, the more hurt"
    )
    gain: Estimate = Field(description="paired difference: prediction − that rule")
    auroc_loud: Estimate = Field(
        description="AUROC of the prediction among neurons above their layer's median magnitude"
    )
    probe: int = Field(description="neurons in the FP16 probe that have an error here")
    probe_hurt: int = Field(description="those of them that are hurt")
    probe_auroc: Estimate | None = Field(
        description="AUROC of the prediction among them, resampling neurons; empty where fewer "
        "than two are hurt, or all but one"
    )


class OfStatistic(Row):
    """What each FP16 statistic of a neuron says of its survival."""

    target: str = Field(description="by what a neuron is hurt; see survival")
    statistic: str = Field(description="what is known at FP16, by its place within the layer")
    meaning: str = Field(description="what it is")
    weight: float = Field(
        description="log odds of being hurt for each standard deviation, all layers and precisions"
    )
    auroc: float = Field(description="AUROC of the statistic alone: mean over precisions")
    auroc_least: float = Field(description="at the precision where it is least")
    auroc_most: float = Field(description="at that where it is most")


TABLES: Tables = {
    "survival": (Survival, ("precision", "target")),
    "statistics": (OfStatistic, ("target", "statistic")),
}
