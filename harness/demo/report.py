"""The report of a run of scores and labels."""

from collections.abc import Mapping, Sequence

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
    return _forest(
        run,
        "AUROC of the probe and of token entropy",
        "score",
        "Each sample is scored by a probe that has not seen its fold.",
        "AUROC out of fold, 95% intervals",
        {
            "auroc": (_PROBE, Look(BLUE, "circle")),
            "auroc_entropy": (_ENTROPY, Look(GREEN, "triangle-down")),
        },
    )


def _alarms(run: RunFolder) -> Figure:
    return _forest(
        run,
        "Share of right answers that are flagged",
        "threshold",
        "At the threshold set on FP16, and at one that keeps its quantile among the new scores.",
        "false alarms, 95% intervals",
        {
            "false_alarms": (_FROZEN, Look(VERMILION, "square")),
            "false_alarms_transferred": (_TRANSFERRED, Look(ORANGE, "diamond")),
        },
    )


def _forest(
    run: RunFolder,
    title: str,
    series: str,
    alt: str,
    x_title: str,
    drawn: Mapping[str, tuple[str, Look]],
) -> Figure:
    """Return a forest plot of some columns of the table detection, {column: (name, look)}."""
    frame = run.frame("detection")
    points = pl.concat(
        points_of(frame, column, pl.col("precision"), pl.lit(name))
        for column, (name, _) in drawn.items()
    )
    return Figure(
        title,
        alt,
        forest(points, dict(drawn.values()), x_title),
        points.rename({"row": "precision", "series": series}),
        f"`detection.csv`: {', '.join(drawn)}",
    )
