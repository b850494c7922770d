"""Columns of the tables that are computed from scores and labels alone."""

from pydantic import Field

from harness.tables.schema import UNITS, Row, Tables
from hq.stats.intervals import Estimate


class ScoredDesign(Row):
    """What was scored."""

    scorer: str = Field(description="what the scores are of")
    n: int = Field(description="samples")
    hallucinated: int = Field(description="hallucinated samples")
    units: int = Field(description=UNITS)
    folds: int = Field(description="outer folds; a sample's score is by a fit without its fold")


class ScoredPrecision(Row):
    """How well the scores at a precision detect hallucinated answers."""

    precision: str = Field(description="the precision at which the answers were scored")
    n: int = Field(description="samples")
    units: int = Field(description="independent units of these")
    auroc: Estimate = Field(description="AUROC of the frozen FP16 probes, within folds")
    auroc_change: Estimate = Field(description="paired difference from the AUROC at FP16")
    detectable: float | None = Field(
        description="the smallest difference from FP16 that these samples show with 80% power"
    )
    verdict: str = Field(
        description="preserved: the 90% interval of the change lies within ±0.02 (TOST); changed: "
        "the 95% interval excludes 0; else not decided at this n"
    )
    auroc_entropy: Estimate = Field(description="AUROC of the mean token entropy of the answer")
    probe_minus_entropy: Estimate = Field(description="paired difference from that AUROC")
    false_alarms: Estimate = Field(
        description="share of right answers at or above FP16's threshold, which maximises "
        "sensitivity + specificity − 1 on other folds"
    )
    detected: Estimate = Field(description="share of hallucinated answers at or above it")
    false_alarms_transferred: Estimate = Field(
        description="false alarms at the threshold transferred without labels (quantile matching)"
    )


TABLES: Tables = {
    "design": (ScoredDesign, ("scorer",)),
    "detection": (ScoredPrecision, ("precision",)),
}
