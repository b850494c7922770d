"""The report of drift: whether a monitor still works at another precision, and what repairs it."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION
from harness.report.grids import grid
from harness.report.page import Figure, Part, Section
from harness.report.run import RunFolder
from harness.tables.readme_cells import Cells, listed

_REPAIRS = {
    "none": Look(GREY, "circle"),
    "standardised": Look(BLUE, "square"),
    "aligned": Look(GREEN, "diamond"),
    "reweighted": Look(ORANGE, "triangle-up"),
    "labels": Look(VERMILION, "triangle-down"),
}


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of drift."""
    t, rows = run.tables, run.tables.rows("drift")
    verdicts = [
        f"`{row['precision']}` {t.count('drift', 'verdict', precision=row['precision'])} "
        f"(AUROC {t.estimate('drift', 'auroc_change', signed=True, precision=row['precision'])})"
        for row in rows
    ]
    first: Cells = {"precision": rows[0]["precision"]}
    answer = (
        f"On {t.count('drift', 'n', **first)} answers in {t.count('drift', 'units', **first)} "
        "units, "
        f"the verdicts on the FP16 monitor are {listed(verdicts)}."
    )
    alarms = [
        f"{t.estimate('drift', 'false_alarms', 2, precision=row['precision'])} at "
        f"`{row['precision']}`"
        for row in rows
    ]
    second = (
        f"With the threshold set at FP16 for {t.number('drift', 'promised', 2, **first)} false "
        "alarms "
        f"(observed there {t.estimate('drift', 'false_alarms_fp16', 2, **first)}), the share of "
        "right "
        f"answers flagged is {listed(alarms)}."
    )
    return Part([answer, second], [_alarms(run, second), _repair(run)])


def _alarms(run: RunFolder, text: str) -> Section:
    frame = run.frame("drift")
    columns = {"false_alarms_fp16": "at FP16", "false_alarms": "at the precision"}
    points = pl.concat(
        [points_of(frame, c, pl.col("precision"), pl.lit(name)) for c, name in columns.items()]
    )
    looks = {"at FP16": Look(GREY, "diamond"), "at the precision": Look(PURPLE, "circle")}
    promised = float(frame["promised"][0])
    figure = Figure(
        "False alarms of the FP16 threshold",
        f"The dashed line is the promise. {text}",
        forest(points, looks, "share of right answers flagged, 95% intervals", rule=promised),
        points.rename({"row": "precision", "series": "where"}),
        "`drift.csv`: false_alarms_fp16, false_alarms",
    )
    table = grid(
        run,
        "drift",
        "Verdicts",
        {
            "precision": "precision",
            "auroc": "AUROC",
            "auroc_change": "change",
            "detectable": "detectable",
            "verdict": "verdict",
            "without_labels": "without labels",
            "ks": "KS",
            "ks_p": "p",
            "calibration_slope": "calibration slope",
        },
    )
    return Section("Drift", [figure, table], "`drift.csv`")


def _repair(run: RunFolder) -> Section:
    frame = run.frame("repair")
    last = frame.filter(pl.col("texts") == pl.col("texts").max().over("precision", "method"))
    points = points_of(last, "gain", pl.col("precision"), pl.col("method"))
    lost = [
        f"{run.tables.estimate('drift', 'auroc_change', signed=True, precision=p)} at `{p}`"
        for p in frame["precision"].unique(maintain_order=True)
    ]
    figure = Figure(
        "AUROC that each repair gives back",
        f"Gain over no repair, with all texts. What was lost: {listed(lost)}.",
        forest(points, _REPAIRS, "gain of AUROC, 95% intervals", rule=0),
        points.rename({"row": "precision", "series": "repair"}),
        "`repair.csv`: gain",
    )
    return Section("Repair", [figure], "`repair.csv`")
