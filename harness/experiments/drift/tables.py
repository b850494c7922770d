"""Columns of the tables of drift."""

from pydantic import Field

from harness.tables.schema import ENTITIES, Row, Tables
from hq.stats.intervals import Estimate


class DriftRow(Row):
    """Whether the FP16 probe and its threshold still do at a precision what they did at FP16."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    n: int = Field(description="samples, each scored by the FP16 probe of its fold")
    units: int = Field(description=ENTITIES)
    auroc: Estimate = Field(description="AUROC of the FP16 probe")
    auroc_change: Estimate = Field(description="paired difference of the AUROC from FP16")
    detectable: float = Field(description="smallest change of the AUROC with 80% power")
    false_alarms_fp16: Estimate = Field(
        description="share of right answers at FP16 at or above the threshold set at FP16; units "
        "have equal weights"
    )
    false_alarms: Estimate = Field(description="the same share at this precision")
    promised: float = Field(description="the share that the threshold promises")
    flagged_fp16: float = Field(
        description="share of all answers at FP16 at or above the threshold; rows weigh equally"
    )
    flagged: Estimate = Field(description="the same share at this precision")
    flagged_change: Estimate = Field(description="paired change of this share from FP16")
    psi: float = Field(
        description="population stability index of the scores, in tenths of the FP16 scores"
    )
    psi_p: float = Field(description="its p-value: texts exchange their precisions, whole units")
    ks: float = Field(description="largest difference of the distribution functions of the scores")
    ks_p: float = Field(description="its p-value, from the same permutations")
    calibration_error_fp16: float = Field(
        description="expected calibration error of the probe's probability at FP16 (10 bins)"
    )
    calibration_error: float = Field(description="the same at this precision")
    calibration_slope: Estimate = Field(
        description="slope of the log odds of a hallucination on the score: 1 if calibrated"
    )
    verdict: str = Field(
        description="scorer-degraded, threshold-stale, inconclusive or ok; docs/evidence/drift.md"
    )
    more: int | None = Field(
        description="units to add for a verdict; empty unless inconclusive and units can decide"
    )
    without_labels: str = Field(
        description="the verdict if labels are unknown: from flagged_change only"
    )


class RepairRow(Row):
    """What a repair without labels restores, fitted on texts of other folds."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    method: str = Field(
        description="none; standardised: mean and scale of each neuron are those of the texts at "
        "this precision; aligned: changed as on the same texts at FP16; reweighted: aligned, and "
        "weights that reproduce the FP16 scores; labels: the probe identified again, with labels"
    )
    texts: int = Field(description="texts of other folds, without their labels except for `labels`")
    draws: int = Field(description="draws of these texts; columns are means over them")
    n: int = Field(description="samples, each scored by the repaired probe of its fold")
    units: int = Field(description=ENTITIES)
    auroc: Estimate = Field(description="AUROC after the repair")
    deviation: float | None = Field(
        description="standard deviation of the AUROC over draws; empty for one draw"
    )
    lost: Estimate = Field(description="AUROC at FP16 − AUROC at this precision, paired")
    gain: Estimate = Field(description="AUROC after the repair − AUROC without it, paired")
    restored: Estimate | None = Field(
        description="gain ÷ lost; empty unless the 95% interval of lost is above 0"
    )
    promised: float = Field(description="false-alarm rate that the threshold promises")
    false_alarms: Estimate = Field(
        description="share of right answers at or above the threshold set at FP16; for `labels`, "
        "the threshold set at this precision"
    )
    false_alarms_matched: Estimate | None = Field(
        description="the same with the threshold at the same quantile of the scores of the texts"
    )
    detected: Estimate = Field(
        description="share of hallucinated answers at or above the threshold of false_alarms"
    )
    detected_matched: Estimate | None = Field(
        description="share of hallucinated answers at or above that of false_alarms_matched"
    )


TABLES: Tables = {
    "drift": (DriftRow, ("precision",)),
    "repair": (RepairRow, ("precision", "method", "texts")),
}
