"""Small multiples of scores, one panel per precision: ROC, reliability, scatter, false alarms."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from harness.report.charts.style import BLUE, EDGE, GREY, PURPLE, VERMILION

_COLUMNS = 4
_LINE = {"x": [0.0, 1.0], "y": [0.0, 1.0]}


def panels(
    layers: alt.LayerChart, frame: pl.DataFrame, order: Sequence[str], axes: str
) -> alt.FacetChart:
    """Return one panel per precision of layers without data of their own; `axes` names x and y."""
    facet = alt.Facet(
        "precision:N", sort=list(order), title=None, header=alt.Header(labelFontWeight="bold")
    )
    caption = alt.Title(axes, orient="bottom", anchor="middle", fontWeight="normal", fontSize=11.5)
    return (
        layers.properties(data=frame)
        .facet(facet=facet, columns=min(_COLUMNS, len(order)))
        .properties(spacing=14, title=caption)
        .resolve_axis(x="independent", y="independent")
    )


def _side(order: Sequence[str]) -> int:
    return 138 if len(order) >= _COLUMNS else 190


def _share(name: str) -> alt.X:
    return alt.X(
        name,
        title=None,
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(values=[0, 0.5, 1], format=".1f", grid=True),
    )


def roc_panels(curves: pl.DataFrame, order: Sequence[str]) -> alt.FacetChart:
    """Draw ROC curves: precision, false, detected, and detected at the reference."""
    side = _side(order)
    x = _share("false:Q")
    base = alt.Chart().encode(x=x)
    layers = alt.layer(
        base.mark_line(color=EDGE, strokeDash=[3, 3], strokeWidth=1).encode(
            y=alt.Y("false:Q", title=None)
        ),
        base.mark_line(color=GREY, strokeWidth=1.5).encode(y=alt.Y("reference:Q", title=None)),
        base.mark_line(color=BLUE, strokeWidth=2).encode(
            y=alt.Y("detected:Q", title=None, axis=_axis())
        ),
    ).properties(width=side, height=side)
    return panels(layers, curves, order, "detection rate (y) by false-alarm rate (x)")


def reliability_panels(bins: pl.DataFrame, order: Sequence[str]) -> alt.FacetChart:
    """Draw observed against predicted shares with intervals; size: answers of the bin."""
    side = _side(order)
    x = _share("predicted:Q")
    base = alt.Chart().encode(x=x)
    layers = alt.layer(
        _diagonal(),
        base.mark_rule(color=BLUE).encode(y=alt.Y("low:Q", title=None, axis=_axis()), y2="high:Q"),
        base.mark_point(filled=True, color=BLUE, opacity=1).encode(
            y=alt.Y("observed:Q", title=None),
            size=alt.Size(
                "answers:Q",
                scale=alt.Scale(range=[12, 150]),
                legend=alt.Legend(title="answers in the bin", tickCount=3, symbolFillColor=BLUE),
            ),
        ),
    ).properties(width=side, height=side)
    return panels(
        layers, bins, order, "observed share of hallucinated (y) by predicted probability (x)"
    )


def scatter_panels(cells: pl.DataFrame, order: Sequence[str], reference: str) -> alt.FacetChart:
    """Draw cells of the score at the reference against that at each precision."""
    side = _side(order)
    low = min(float(cells[c].min() or 0) for c in ("x", "y"))  # type: ignore[arg-type]
    high = max(float(cells[c].max() or 1) for c in ("x", "y"))  # type: ignore[arg-type]
    scale = alt.Scale(domain=[low - 0.2, high + 0.2], nice=False)
    named = cells.with_columns(
        label=pl.when(pl.col("hallucinated") > 2 / 3)
        .then(pl.lit("mostly hallucinated"))
        .when(pl.col("hallucinated") < 1 / 3)
        .then(pl.lit("mostly right"))
        .otherwise(pl.lit("mixed"))
    )
    names, colours = (
        ["mostly right", "mixed", "mostly hallucinated"],
        [BLUE, GREY, VERMILION],
    )
    axis = alt.Axis(tickCount=4, grid=True)
    layers = alt.layer(
        alt.Chart(pl.DataFrame({"x": [low, high], "y": [low, high]}))
        .mark_line(color=EDGE, strokeDash=[3, 3], strokeWidth=1)
        .encode(x=alt.X("x:Q", title=None), y=alt.Y("y:Q", title=None)),
        alt.Chart()
        .mark_point(filled=True, opacity=0.85)
        .encode(
            x=alt.X("x:Q", title=None, scale=scale, axis=axis),
            y=alt.Y("y:Q", title=None, scale=scale, axis=axis),
            size=alt.Size(
                "answers:Q",
                scale=alt.Scale(range=[6, 110]),
                legend=alt.Legend(title="answers", tickCount=3, symbolFillColor=GREY),
            ),
            color=alt.Color("label:N", scale=alt.Scale(domain=names, range=colours)),
            shape=alt.Shape(
                "label:N", scale=alt.Scale(domain=names, range=["circle", "diamond", "square"])
            ),
        ),
    ).properties(width=side, height=side)
    return panels(layers, named, order, f"score at the precision (y) by score at {reference} (x)")


def alarm_panels(rates: pl.DataFrame, order: Sequence[str]) -> alt.FacetChart:
    """Draw observed false-alarm rates against promised ones: threshold, promised, value, ends."""
    names = rates["threshold"].unique(maintain_order=True).to_list()
    looks = {
        "FP16 threshold": (VERMILION, "square"),
        "transferred without labels": (BLUE, "circle"),
        "recalibrated with labels": (PURPLE, "triangle-up"),
    }
    side = _side(order)
    top = max(float(rates["high"].max() or 0.3), float(rates["promised"].max() or 0.2))  # type: ignore[arg-type]
    promised = rates["promised"].unique().sort().to_list()
    scale = alt.Scale(domain=[0, min(1.0, top)], nice=True)
    colour = alt.Color(
        "threshold:N", scale=alt.Scale(domain=names, range=[looks[n][0] for n in names])
    )
    base = alt.Chart().encode(color=colour)
    layers = alt.layer(
        alt.Chart()
        .mark_line(color=EDGE, strokeDash=[3, 3], strokeWidth=1)
        .encode(x=alt.X("promised:Q", title=None), y=alt.Y("promised:Q", title=None)),
        base.mark_rule().encode(
            x=alt.X(
                "shifted:Q",
                title=None,
                scale=alt.Scale(domain=[0, promised[-1] * 1.15], nice=False),
                axis=alt.Axis(grid=True, values=promised),
            ),
            y=alt.Y("low:Q", title=None, scale=scale),
            y2="high:Q",
        ),
        base.mark_point(filled=True, size=42, opacity=1).encode(
            x=alt.X("shifted:Q", title=None),
            y=alt.Y("value:Q", title=None),
            shape=alt.Shape(
                "threshold:N", scale=alt.Scale(domain=names, range=[looks[n][1] for n in names])
            ),
        ),
    ).properties(width=side, height=side)
    step = 0.006  # side by side, so that intervals do not cover each other
    shift = {name: (i - (len(names) - 1) / 2) * step for i, name in enumerate(names)}
    shifted = rates.with_columns(
        shifted=pl.col("promised")
        + pl.col("threshold").replace_strict(shift, return_dtype=pl.Float64)
    )
    return panels(layers, shifted, order, "observed (y) by promised (x) false-alarm rate")


def _diagonal() -> alt.Chart:
    return (
        alt.Chart(pl.DataFrame(_LINE))
        .mark_line(color=EDGE, strokeDash=[3, 3], strokeWidth=1)
        .encode(x=alt.X("x:Q", title=None), y=alt.Y("y:Q", title=None))
    )


def _axis() -> alt.Axis:
    return alt.Axis(values=[0, 0.5, 1], format=".1f", grid=True)
