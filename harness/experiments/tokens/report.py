"""The report of tokens: which number of an answer's token scores detects hallucination best."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from harness.report.page import Figure, Part, Section
from harness.report.run import REFERENCE, RunFolder
from harness.tables.readme_cells import Cells

_LOOKS = {
    "mean": Look(BLUE, "circle"),
    "max": Look(VERMILION, "square"),
    "min": Look(GREEN, "diamond"),
    "first": Look(ORANGE, "triangle-up"),
    "last": Look(PURPLE, "triangle-down"),
}


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of tokens."""
    t, rows = run.tables, run.tables.rows("tokens", precision=REFERENCE)
    best = max(rows, key=lambda row: float(row["auroc"]))["reduction"]
    where: Cells = {"precision": REFERENCE, "reduction": "mean"}
    of_best: Cells = {"precision": REFERENCE, "reduction": best}
    answer = (
        f"On {t.count('tokens', 'n', **where)} answers of "
        f"{t.number('tokens', 'tokens', 1, **where)} "
        f"tokens on average, in {t.count('tokens', 'units', **where)} units, the mean of the "
        f"tokens' scores has an AUROC of **{t.estimate('tokens', 'auroc', **where)}** at FP16."
    )
    second = (
        "No other number of an answer's token scores has a higher AUROC."
        if best == "mean"
        else f"The highest is that of `{best}`: {t.estimate('tokens', 'auroc', **of_best)}, "
        f"{t.estimate('tokens', 'auroc_minus_mean', signed=True, **of_best)} from the mean's."
    )
    points = points_of(run.frame("tokens"), "auroc", pl.col("precision"), pl.col("reduction"))
    figure = Figure(
        "AUROC of one number per answer, from its token scores",
        "By the frozen FP16 probes, out of fold. `mean` is the score of the answer, because scores "
        f"are linear in CETT. {second}",
        forest(points, _LOOKS, "AUROC out of fold, 95% intervals", rule=0.5),
        points.rename({"row": "precision", "series": "reduction"}),
        "`tokens.csv`: auroc",
    )
    return Part([answer, second], [Section("Reductions", [figure], "`tokens.csv`")])
