"""Columns of the tables of survival."""

from pydantic import Field

from harness.tables.schema import Row, Tables
from hq.stats.intervals import Estimate


class Survival(Row):
    """How well FP16 alone predicts which neurons a precision degrades."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    target: str = Field(
        description="measure of degradation: error, the relative error of a neuron's contribution; "
        "rank, the change of its rank within the layer"
    )
    layers: int = Field(
        description="layers, each predicted from other layers: the independent units of intervals"
    )
    n: int = Field(description="neurons with a defined error")
    hurt: int = Field(description="degraded neurons: the worst quarter of each layer")
    texts: int = Field(
        description="samples on which errors are measured: those of the odd folds; statistics of "
        "activity are computed on those of the even folds"
    )
    auroc: Estimate = Field(
        description="AUROC of the prediction, fitted on other layers at the other precisions"
    )
    auroc_small: Estimate = Field(
        description="AUROC of a rule without a fit: smaller contributions are degraded more"
    )
    gain: Estimate = Field(description="paired difference: prediction − that rule")
    auroc_loud: Estimate = Field(
        description="AUROC of the prediction among neurons above their layer's median magnitude"
    )
    probe: int = Field(description="neurons of the FP16 probe with a defined error")
    probe_hurt: int = Field(description="those of them that are degraded")
    probe_auroc: Estimate | None = Field(
        description="AUROC of the prediction among them, each an independent unit; empty if fewer "
        "than two are degraded, or fewer than two are not"
    )


class OfStatistic(Row):
    """How each FP16 statistic of a neuron is related to its degradation."""

    target: str = Field(description="measure of degradation; see survival")
    statistic: str = Field(description="statistic at FP16, as a normal score within the layer")
    meaning: str = Field(description="meaning of the statistic")
    weight: float = Field(
        description="change of the log odds of degradation per standard deviation, fitted on all "
        "layers and precisions"
    )
    auroc: float = Field(description="AUROC of the statistic alone: mean over precisions")
    auroc_least: float = Field(description="smallest AUROC over precisions")
    auroc_most: float = Field(description="largest AUROC over precisions")


TABLES: Tables = {
    "survival": (Survival, ("precision", "target")),
    "statistics": (OfStatistic, ("target", "statistic")),
}
