"""The report of a run of scores and labels."""

from collections.abc import Sequence

import polars as pl

from harness.experiments.detect import report_scores
from harness.experiments.detect.report import change_figure
from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, ORANGE, VERMILION
from harness.report.generic import section
from harness.report.page import Figure, Part, Section
from harness.report.run import REFERENCE, RunFolder
from harness.tables.readme_cells import Cells

_PROBE, _ENTROPY = "FP16 probe, frozen", "token entropy"
_FROZEN, _TRANSFERRED = "FP16 threshold", "transferred without labels"


def report(run: RunFolder, _: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of scores."""
    t = run.tables
    where: Cells = {"precision": REFERENCE}
    answer = (
        f"On {t.count('detection', 'n', **where)} answers in "
        f"{t.count('detection', 'units', **where)} units, the FP16 probe has an AUROC of "
        f"**{t.estimate('detection', 'auroc', **where)}**; token entropy has "
        f"{t.estimate('detection', 'auroc_entropy', **where)}."
    )
    rows = t.rows("detection")
    worst = min(rows, key=lambda row: float(row["auroc_change"]))["precision"]
    of_worst: Cells = {"precision": worst}
    alarms = [t.estimate("detection", "false_alarms", 2, **of) for of in (of_worst, where)]
    second = (
        f"The largest loss is at `{worst}`: "
        f"**{t.estimate('detection', 'auroc_change', signed=True, **of_worst)}** "
        f"({t.cell('detection', 'verdict', **of_worst)}). FP16's threshold flags {alarms[0]} of "
        f"the right answers there, and {alarms[1]} at FP16."
    )
    source = "`detection.csv`"
    return Part(
        [answer, second],
        [
            Section("Detection", [_detection(run)], source),
            Section("Change from FP16", [change_figure(run, run.frame("detection"))], source),
            Section("False alarms", [_alarms(run)], source),
            *report_scores.sections(run),
            report_scores.browser(run, run),
            section(run, "detection"),
        ],
    )


def _detection(run: RunFolder) -> Figure:
    frame = run.frame("detection")
    points = pl.concat(
        [
            points_of(frame, "auroc", pl.col("precision"), pl.lit(_PROBE)),
            points_of(frame, "auroc_entropy", pl.col("precision"), pl.lit(_ENTROPY)),
        ]
    )
    looks = {_PROBE: Look(BLUE, "circle"), _ENTROPY: Look(GREEN, "triangle-down")}
    return Figure(
        "AUROC of the probe and of token entropy",
        "Each sample is scored by a probe that has not seen its fold.",
        forest(points, looks, "AUROC out of fold, 95% intervals"),
        points.rename({"row": "precision", "series": "score"}),
        "`detection.csv`: auroc, auroc_entropy",
    )


def _alarms(run: RunFolder) -> Figure:
    frame = run.frame("detection")
    points = pl.concat(
        [
            points_of(frame, "false_alarms", pl.col("precision"), pl.lit(_FROZEN)),
            points_of(frame, "false_alarms_transferred", pl.col("precision"), pl.lit(_TRANSFERRED)),
        ]
    )
    looks = {_FROZEN: Look(VERMILION, "square"), _TRANSFERRED: Look(ORANGE, "diamond")}
    return Figure(
        "Share of right answers that are flagged",
        "At the threshold set on FP16, and at one that keeps its quantile among the new scores.",
        forest(points, looks, "false alarms, 95% intervals"),
        points.rename({"row": "precision", "series": "threshold"}),
        "`detection.csv`: false_alarms, false_alarms_transferred",
    )
