"""The report of survival: whether the degradation of a neuron is predicted from FP16 alone."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, VERMILION
from harness.report.grids import grid
from harness.report.page import Block, Figure, Part, Section
from harness.report.run import RunFolder
from harness.tables.readme_cells import Cells

_LOOKS = {
    "prediction": Look(BLUE, "circle"),
    "smaller contributions are degraded more": Look(VERMILION, "square"),
    "prediction, neurons above the median": Look(GREEN, "diamond"),
}
_COLUMNS = dict(zip(("auroc", "auroc_small", "auroc_loud"), _LOOKS, strict=True))


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of survival."""
    t = run.tables
    row = t.rows("survival")[0]
    where: Cells = {key: row[key] for key in ("precision", "target")}
    rows = [r for r in t.rows("survival") if r["target"] == row["target"]]
    low, high = (f(rows, key=lambda r: float(r["auroc"])) for f in (min, max))
    ends = [
        t.estimate("survival", "auroc", precision=r["precision"], target=r["target"])
        + f" at `{r['precision']}`"
        for r in (low, high)
    ]
    answer = (
        f"From FP16 alone, the worst quarter of {t.count('survival', 'n', **where)} neurons by "
        f"`{row['target']}` is predicted with an AUROC of {ends[0]} to {ends[1]}, on layers and "
        "precisions that the prediction has not seen."
    )
    gains = [r["precision"] for r in rows if r["gain_low"] > 0]
    second = (
        "The prediction is better than the rule that smaller contributions are degraded more (95% "
        f"interval of the difference above 0) at {len(gains)} of {len(rows)} precisions."
    )
    frame = run.frame("survival")
    label = pl.concat_str("precision", pl.lit(", "), "target")
    points = pl.concat(
        [points_of(frame, column, label, pl.lit(name)) for column, name in _COLUMNS.items()]
    )
    figure = Figure(
        "AUROC of predicted degradation",
        second,
        forest(points, _LOOKS, "AUROC, 95% intervals over layers", rule=0.5),
        points,
        "`survival.csv`: auroc, auroc_small, auroc_loud",
    )
    blocks: list[Block] = [figure, grid(run, "statistics", "What predicts it")]
    return Part(
        [answer, second], [Section("Prediction", blocks, "`survival.csv`, `statistics.csv`")]
    )
