"""Columns of the tables of detectors."""

from pydantic import Field

from harness.tables.schema import ENTITIES, Row, Tables
from hq.stats.intervals import Estimate


class DetectorRow(Row):
    """How well a detector predicts hallucination, beside the probe of H-Neurons."""

    precision: str = Field(description="the precision at which the model answers and is read")
    detector: str = Field(description="name of the detector; see `about`")
    about: str = Field(description="what it scores, with its source")
    fitted: bool = Field(
        description="whether it is fitted on labelled answers: at fp16, in the probe's folds"
    )
    passes: int = Field(description="passes of the model after the answer; each response counts")
    numbers: int = Field(description="numbers that it stores")
    n: int = Field(description="samples")
    units: int = Field(description=ENTITIES)
    auroc: Estimate = Field(description="AUROC, out of fold if the detector is fitted")
    change: Estimate = Field(description="paired change of the AUROC from fp16")
    probe_minus: Estimate = Field(
        description="paired difference of AUROCs: probe of H-Neurons − this detector"
    )
    p: float = Field(
        description="two-sided p of that difference (t test over units), Holm-adjusted over the "
        "detectors of a precision; 1 for the probe itself"
    )


class NestedRow(Row):
    """What the score of H-Neurons adds to a detector, and the detector to H-Neurons."""

    precision: str = Field(description="the precision at which the model answers and is read")
    detector: str = Field(description="name of the detector")
    n: int = Field(description="samples")
    units: int = Field(description=ENTITIES)
    auroc_both: Estimate = Field(
        description="AUROC of both scores, combined by a logistic regression fitted on other folds"
    )
    probe_adds: Estimate = Field(description="AUROC of both − AUROC of the detector")
    probe_adds_loss: Estimate = Field(
        description="log-loss of the detector − log-loss of both, in nats per sample; positive if "
        "H-Neurons improve the probabilities"
    )
    probe_p: float = Field(
        description="two-sided p of that gain in log-loss, Holm-adjusted over the detectors of a "
        "precision"
    )
    detector_adds: Estimate = Field(description="AUROC of both − AUROC of H-Neurons")
    detector_adds_loss: Estimate = Field(
        description="log-loss of H-Neurons − log-loss of both, in nats per sample"
    )


TABLES: Tables = {
    "detectors": (DetectorRow, ("precision", "detector")),
    "nested": (NestedRow, ("precision", "detector")),
}
