"""The report of sweep: whether scaling the H-Neurons by α changes what the model does."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, VERMILION
from harness.report.charts.sweep import curves
from harness.report.grids import grid
from harness.report.page import Figure, Part, Section
from harness.report.run import REFERENCE, RunFolder
from harness.tables.readme_cells import Cells, code, listed
from harness.tables.readme_findings import suppression_finding

_LOOKS = {
    "H-Neurons": Look(BLUE, "circle"),
    "excess over matched draws": Look(VERMILION, "square"),
}


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a sweep."""
    rows = run.tables.rows("slopes")
    return Part([_answer(run, rows), suppression_finding(run.tables)], [_curves(run), _slopes(run)])


def _answer(run: RunFolder, rows: Sequence[Cells]) -> str:
    t = run.tables
    reference = [row for row in rows if row["precision"] == REFERENCE]
    slopes = []
    for row in reference:
        own, drawn = (
            t.estimate("slopes", column, signed=True, **_of(row))
            for column in ("slope", "slope_matched")
        )
        slopes.append(f"{own} per unit α on {row['scenario']} (matched draws {drawn})")
    first = _of(reference[0] if reference else rows[0])
    unsure = sorted({row["scenario"] for row in rows if "not " in row["judge"]})
    judged = (
        f" The judge of {listed(code(unsure))} is not validated or not measurable, so its rates "
        "are "
        "hints only."
        if unsure
        else ""
    )
    return (
        f"Scaling {t.count('slopes', 'neurons', **first)} H-Neurons by α changes the share of up "
        "to "
        f"{t.count('slopes', 'n', **first)} trials that comply by {listed(slopes)} at FP16.{judged}"
    )


def _of(row: Cells) -> Cells:
    return {"precision": row["precision"], "scenario": row["scenario"]}


def _curves(run: RunFolder) -> Section:
    rates = run.frame("rates")
    ends = [
        f"{float(low):.2f} to {float(high):.2f} at `{precision}` on {scenario}"
        for scenario, precision, low, high in rates.filter(neurons="h")
        .group_by("scenario", "precision", maintain_order=True)
        .agg(low=pl.col("rate").min(), high=pl.col("rate").max())
        .iter_rows()
    ]
    figure = Figure(
        "Rates over α, with matched neurons",
        "Share of the trials that comply when the H-Neurons, or as many neurons of the same layers "
        f"and magnitudes, are multiplied by α. With the H-Neurons it is {listed(ends)}.",
        curves(run.path),
        rates.select("precision", "scenario", "neurons", "alpha", "rate", "rate_low", "rate_high"),
        "`rates.csv`: rate",
    )
    return Section("Curves", [figure, *_costs(run)], "`rates.csv`, `costs.csv`")


def _costs(run: RunFolder) -> list[Figure]:
    if not run.has("costs"):
        return []
    costs = run.frame("costs")
    if costs["accuracy"].null_count() == costs.height:
        return []
    row = pl.concat_str("precision", pl.lit(", α = "), pl.col("alpha").cast(pl.String))
    points = points_of(costs, "accuracy", row, pl.lit("accuracy"))
    return [
        Figure(
            "Accuracy on held-out questions, by precision and α",
            "What scaling costs: the share of held-out questions that are answered correctly.",
            forest(points, {"accuracy": Look(BLUE, "circle")}, "accuracy, 95% intervals"),
            points.drop("series"),
            "`costs.csv`: accuracy",
        )
    ]


def _slopes(run: RunFolder) -> Section:
    slopes = run.frame("slopes")
    row = pl.concat_str("scenario", pl.lit(", "), "precision")
    columns = (("slope", "H-Neurons"), ("excess", "excess over matched draws"))
    points = pl.concat([points_of(slopes, column, row, pl.lit(name)) for column, name in columns])
    figure = Figure(
        "Slopes, and their excess over matched draws",
        "Least-squares slope of the rate over α, and the slope minus the mean of the matched "
        "draws' over the same α. The dashed line is no effect.",
        forest(points, _LOOKS, "change of the rate per unit α, 95% intervals", rule=0),
        points,
        "`slopes.csv`: slope, excess",
    )
    table = grid(
        run,
        "slopes",
        "Slopes by scenario and precision",
        {
            "scenario": "scenario",
            "precision": "precision",
            "n": "trials",
            "slope": "slope",
            "detectable": "detectable",
            "excess": "excess over matched",
            "p_matched": "p of the draws",
            "shape": "shape",
            "change": "change from FP16",
            "verdict": "verdict",
        },
    )
    return Section("Slopes", [figure, table], "`slopes.csv`")
