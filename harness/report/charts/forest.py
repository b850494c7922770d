"""Forest plots: values with intervals, one row per name and one mark per series."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from harness.report.charts.style import EDGE, LINE, zero_rule

WIDTH = 470


class Look(NamedTuple):
    """Colour and shape of a series."""

    colour: str
    shape: str
    filled: bool = True


def points_of(frame: pl.DataFrame, column: str, row: pl.Expr, series: pl.Expr) -> pl.DataFrame:
    """Return row, series, value, low and high of an estimate, without empty cells."""
    return frame.select(
        row.cast(pl.String).alias("row"),
        series.cast(pl.String).alias("series"),
        pl.col(column).cast(pl.Float64).alias("value"),
        pl.col(f"{column}_low").cast(pl.Float64).alias("low"),
        pl.col(f"{column}_high").cast(pl.Float64).alias("high"),
    ).filter(pl.col("value").is_not_null())


def forest(
    points: pl.DataFrame,
    looks: Mapping[str, Look],
    x_title: str,
    *,
    rule: float | None = None,
    band: tuple[float, float] | None = None,
    domain: tuple[float, float] | None = None,
    legend: bool = True,
    rows: Sequence[str] | None = None,
    width: int = WIDTH,
    step: int = 9,
) -> alt.LayerChart:
    """Return a forest plot of `points`: row, series, value, low and high.

    `rule` is a vertical line, and `band` a range of x, behind the points. Intervals may be null.
    Series have places of their own in a row, unless a column `place` puts several into one.
    """
    if "place" not in points.columns:
        points = points.with_columns(place=pl.col("series"))
    order = list(rows or points["row"].unique(maintain_order=True).to_list())
    drawn = set(points["series"].to_list())
    series = [name for name in looks if name in drawn]
    places = [name for name in looks if name in set(points["place"].to_list())]
    several = points.group_by("row").agg(pl.col("place").n_unique())["place"].max() != 1
    line = {"scale": alt.Scale(domain=series, range=[looks[s].colour for s in series])}
    legend_ = alt.Legend() if legend and len(series) > 1 else None
    colour = alt.Color("series:N", legend=legend_, **line)
    shape = alt.Shape(
        "series:N",
        legend=legend_,
        scale=alt.Scale(domain=series, range=[looks[s].shape for s in series]),
    )
    height = alt.Step(step, **{"for": "offset"}) if several else alt.Step(19)
    offset: dict[str, Any] = {}
    if several:
        offset = {"yOffset": alt.YOffset("place:N", scale=alt.Scale(domain=places))}
    y = alt.Y(
        "row:N",
        sort=order,
        title=None,
        scale=alt.Scale(domain=order, paddingInner=0.28 if several else 0.0, paddingOuter=0.14),
        axis=alt.Axis(
            ticks=False,
            domain=False,
            labelPadding=8,
            grid=True,
            gridColor=LINE,
            **({"bandPosition": -0.19} if several else {}),
        ),
    )
    scale = alt.Scale(zero=False, nice=domain is None, **({"domain": domain} if domain else {}))
    x = alt.X("value:Q", title=x_title, scale=scale, axis=alt.Axis(grid=True, tickCount=6))
    base = alt.Chart(points).encode(y=y, **offset)
    marks = base.encode(x=x, color=colour, shape=shape)
    layers: list[alt.Chart] = []
    if band is not None:
        ends = pl.DataFrame({"low": [band[0]], "high": [band[1]]})
        layers.append(
            alt.Chart(ends)
            .mark_rect(color=EDGE, opacity=0.18)
            .encode(x=alt.X("low:Q", scale=scale, title=x_title), x2="high:Q")
        )
    if rule is not None:
        layers.append(zero_rule(rule))
    layers.append(
        base.mark_rule(strokeWidth=1.5).encode(
            x=alt.X("low:Q", title=x_title, scale=scale), x2="high:Q", color=colour
        )
    )
    for is_filled in (True, False):
        names = [name for name in series if looks[name].filled == is_filled]
        if names:
            chosen = marks.transform_filter(alt.FieldOneOfPredicate(field="series", oneOf=names))
            layers.append(
                chosen.mark_point(filled=is_filled, size=48 if is_filled else 34, opacity=1)
            )
    return alt.layer(*layers).properties(width=width, height=height)
