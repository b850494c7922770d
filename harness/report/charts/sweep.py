"""The picture of a sweep: rates over α, a row of panels per scenario, a panel per precision."""

from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from harness.report.charts.style import BLUE, EDGE, MUTED, VERMILION
from harness.tables.files import read_table

_NAMES = {"h": "H-Neurons", "matched": "matched neurons"}
_COLOURS, _SHAPES = [BLUE, VERMILION], ["circle", "square"]
_LEGEND = alt.Legend(symbolOpacity=1)


def curves(run: Path) -> alt.TopLevelMixin:
    """Draw the rates of a sweep with intervals, and those of matched draws with a band."""
    rates, slopes = read_table(run, "rates"), read_table(run, "slopes")
    scenarios, precisions = (
        slopes[column].unique(maintain_order=True).to_list() for column in ("scenario", "precision")
    )
    side = max(110, min(190, 560 // len(precisions)))
    shapes = slopes.select("scenario", "precision", *_shape(slopes))
    points = rates.filter(pl.col("neurons").is_in(list(_NAMES))).select(
        "scenario",
        "precision",
        "alpha",
        pl.col("neurons").replace(_NAMES).alias("series"),
        pl.col("rate").alias("value"),
        pl.col("rate_low").alias("low"),
        pl.col("rate_high").alias("high"),
    )
    points = points.join(shapes, on=["scenario", "precision"], how="left", maintain_order="left")
    is_first = pl.int_range(pl.len()).over("scenario", "precision") == 0  # the note is drawn once
    points = points.with_columns(note=pl.when(is_first).then("note").otherwise(pl.lit("")))
    rows = [
        _row(points.filter(scenario=scenario), precisions, scenario, side) for scenario in scenarios
    ]
    n, draws = slopes.select("n", "draws").row(0)
    caption = alt.Title(
        f"α (x). Share of up to {n:,} responses that comply (y), 95% intervals; band: 95% of "
        f"{draws} draws",
        orient="bottom",
        fontWeight="normal",
        fontSize=11.5,
        anchor="middle",
    )
    return alt.vconcat(*rows, title=caption, spacing=14)


def _row(points: pl.DataFrame, precisions: list[str], scenario: str, side: int) -> alt.FacetChart:
    ends = points.select(pl.min_horizontal("low", "value").min(), pl.col("high").max()).row(0)
    room = max(ends[1] - ends[0], 0.02) * 0.06
    scale = alt.Scale(domain=[ends[0] - room, ends[1] + room], nice=False, zero=False)
    low, high = points.select(pl.col("alpha").min(), pl.col("alpha").max().alias("high")).row(0)
    room_x = (high - low) * 0.04
    across = alt.Scale(domain=[low - room_x, high + room_x], nice=False)
    x = alt.X("alpha:Q", title=None, scale=across, axis=alt.Axis(tickCount=5, grid=False))
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5, grid=True))
    names = list(_NAMES.values())
    colour = alt.Color("series:N", scale=alt.Scale(domain=names, range=_COLOURS), legend=_LEGEND)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=names, range=_SHAPES), legend=_LEGEND)
    is_h = alt.datum.series == names[0]
    base = alt.Chart().encode(x=x, color=colour)
    ends_of: dict[str, Any] = {"y": alt.Y("low:Q", title=None, scale=scale), "y2": "high:Q"}
    layers = alt.layer(
        alt.Chart().mark_rule(color=EDGE, strokeDash=[3, 3]).encode(x=alt.datum(1)),
        base.mark_area(opacity=0.2).encode(**ends_of).transform_filter(~is_h),
        base.mark_line(strokeDash=[5, 3], strokeWidth=1).encode(y=y).transform_filter(~is_h),
        base.mark_rule(strokeWidth=1.3).encode(**ends_of).transform_filter(is_h),
        base.mark_line(strokeWidth=1.5).encode(y=y).transform_filter(is_h),
        base.mark_point(filled=True, opacity=1, size=32).encode(y=y, shape=shape),
        alt.Chart()
        .mark_text(align="left", color=MUTED, fontSize=10)
        .encode(x=alt.value(4), y=alt.value(int(side * 0.8) - 6), text="note:N")
        .transform_filter(alt.datum.note != ""),
    ).properties(width=side, height=int(side * 0.8))
    facet = alt.Facet(
        "precision:N", sort=precisions, title=None, header=alt.Header(labelFontWeight="bold")
    )
    return (
        layers.properties(data=points)
        .facet(facet=facet, columns=len(precisions))
        .properties(title=scenario, spacing=14)
    )


def _shape(slopes: pl.DataFrame) -> list[pl.Expr]:
    """Return a note on the curves that no line describes; tables of earlier versions have none."""
    if "shape" not in slopes.columns:
        return [pl.lit("").alias("note")]
    is_curve = pl.col("shape").str.starts_with("not monotone")
    return [pl.when(is_curve).then(pl.lit("not monotone")).otherwise(pl.lit("")).alias("note")]
