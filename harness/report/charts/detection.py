"""The picture of detect: AUROC of the probe and of every control, with intervals."""

from pathlib import Path

import altair as alt
import polars as pl

from harness.report.charts.forest import Look, forest
from harness.report.charts.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION
from harness.tables.contents import lacks_table
from harness.tables.files import read_table

CONTROLS = {
    "matched": "matched random neurons*",
    "random": "random neurons*",
    "entropy": "token entropy",
    "length": "answer length",
    "relation": "relation",
    "text-answer": "text: words of the answer",
    "text-question": "text: words of the question",
    "text-both": "text: words of both",
    "text-spelling": "text: characters of both",
}
OF_PRECISION = {
    "FP16 probe, frozen": Look(BLUE, "circle"),
    "further checkpoints": Look(BLUE, "cross"),
    "re-identified neurons": Look(SKY, "diamond"),
    "matched random neurons*": Look(VERMILION, "square"),
    "random neurons*": Look(ORANGE, "triangle-up"),
    "token entropy": Look(GREEN, "triangle-down"),
}
# They depend on the samples only, so they are equal at all precisions and drawn once.
OF_SAMPLES = {
    "answer length": Look(GREY, "square"),
    "relation": Look(PURPLE, "diamond"),
    "text: words of the answer": Look(INK, "circle"),
    "text: words of the question": Look(INK, "circle"),
    "text: words of both": Look(INK, "circle"),
    "text: characters of both": Look(INK, "circle"),
}
_PROBE, _MAKINGS, _AGAIN = list(OF_PRECISION)[:3]


def aurocs(run: Path) -> alt.TopLevelMixin:
    """Draw the AUROCs of a run with their intervals."""
    points = auroc_points(run).with_columns(
        place=pl.when(pl.col("series") == _MAKINGS)  # on the line of the first checkpoint
        .then(pl.lit(_PROBE))
        .otherwise(pl.col("series"))
    )
    n, units = points.select("n", "units").row(0)
    ends = points.select(pl.min_horizontal("low", "value").min(), pl.col("high").max()).row(0)
    # Both panels have one scale, in steps of 0.05 around all intervals and 0.5.
    domain = (int(min(ends[0], 0.5) * 20) / 20, -int(-max(ends[1], 0.5) * 20 // 1) / 20)
    of_samples = pl.col("series").is_in(list(OF_SAMPLES))
    upper = forest(points.filter(~of_samples), OF_PRECISION, "", rule=0.5, domain=domain)
    once = points.filter(of_samples).with_columns(row=pl.col("series"))
    title = f"AUROC out of fold, {n:,} samples in {units:,} units, 95% intervals (*: of the draws)"
    if not once.height:
        return forest(points, OF_PRECISION, title, rule=0.5, domain=domain)
    lower = forest(once, OF_SAMPLES, title, rule=0.5, domain=domain, legend=False)
    return alt.vconcat(upper, lower.properties(title="all precisions")).resolve_scale(
        color="independent", shape="independent", y="independent", yOffset="independent"
    )


def auroc_points(run: Path) -> pl.DataFrame:
    """Return row, series, n, units, value, low and high of every drawn point."""
    detection, controls = read_table(run, "detection"), read_table(run, "controls")
    drawn = _columns(controls, pl.col("control").replace(CONTROLS), "auroc")
    is_equal = pl.col("series").is_in(list(OF_SAMPLES))
    return pl.concat(
        [
            _columns(detection, pl.lit(_PROBE), "auroc"),
            *_further(run),
            _columns(detection, pl.lit(_AGAIN), "auroc_again"),
            drawn.filter(~is_equal),
            drawn.filter(is_equal)
            .with_columns(row=pl.lit("all precisions"))
            .unique("series", keep="first", maintain_order=True),
        ]
    )


def _further(run: Path) -> list[pl.DataFrame]:
    """Return the AUROC of every making after the first, without its interval."""
    if lacks_table(run, "makings"):
        return []
    rows = read_table(run, "makings").filter(pl.col("making").cast(pl.Int64) > 0)
    if not rows.height:
        return []
    points = _columns(rows, pl.lit(_MAKINGS), "auroc")
    return [points.with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))]


def _columns(table: pl.DataFrame, series: pl.Expr, column: str) -> pl.DataFrame:
    return table.select(
        pl.col("precision").alias("row"),
        series.alias("series"),
        "n",
        "units",
        pl.col(column).cast(pl.Float64).alias("value"),
        pl.col(f"{column}_low").cast(pl.Float64).alias("low"),
        pl.col(f"{column}_high").cast(pl.Float64).alias("high"),
    )
