"""The report of fine-tuning: over-compliance before and after, and what it cost."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, VERMILION
from harness.report.grids import grid
from harness.report.page import Block, Figure, Part, Section
from harness.report.run import RunFolder

_LOOKS = {
    "h-neurons": Look(BLUE, "circle"),
    "matched": Look(VERMILION, "square"),
    "plain": Look(GREEN, "diamond"),
}


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of finetune."""
    rows = [r for r in run.tables.rows("behaviour") if r["arm"] == "h-neurons"]
    lower = [r for r in rows if r["change_high"] < 0]
    specific = [r for r in lower if r["beyond_matched_high"] < 0]
    answer = (
        f"Of {len(rows)} scenarios and precisions, over-compliance falls in {len(lower)} after "
        "training with a penalty on the H-Neurons (95% interval of the change below 0)."
    )
    second = (
        f"In {len(specific)} of these {len(lower)} it is also lower than with a penalty on "
        "matched neurons."
    )
    frame = run.frame("behaviour")
    label = pl.concat_str("precision", pl.lit(", "), "scenario")
    points = points_of(frame, "change", label, pl.col("arm"))
    figure = Figure(
        "Change of over-compliance",
        second,
        forest(points, _LOOKS, "after − before, 95% intervals over units", rule=0.0),
        points,
        "`behaviour.csv`: change",
    )
    blocks: list[Block] = [figure]
    tables: list[Block] = [
        grid(run, name, title)
        for name, title in {
            "capability": "What it costs",
            "detection": "The study's probe on the same answers",
            "moved": "Identification on the tuned model",
        }.items()
    ]
    return Part(
        [answer, second],
        [
            Section("Over-compliance", blocks, "`behaviour.csv`"),
            Section("The tuned model", tables, "`capability.csv`, `detection.csv`, `moved.csv`"),
        ],
    )
