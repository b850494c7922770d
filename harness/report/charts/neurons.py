"""Charts of a neuron set: neurons per layer, and the error of each neuron at each precision."""

from collections.abc import Sequence
from itertools import product

import altair as alt
import numpy as np
import polars as pl

from harness.report.charts.style import BLUE, INK, VERMILION

_WIDTH, _HEIGHT = 560, 300
_PALE, _DEEP, _DARK, _LIGHT = "#fff1e0", "#8c3a00", "#1a1a1a", "#fffefd"


def layer_bars(layers: pl.DataFrame) -> alt.Chart:
    """Draw neurons per mille of their layer: layer, sign and per_mille."""
    names, colours = ["positive weight: H-Neurons", "negative weight"], [VERMILION, BLUE]
    count = layers["layer"].n_unique()
    return (
        alt.Chart(layers)
        .mark_bar(size=max(4, min(14, int(_WIDTH / count) - 3)))
        .encode(
            x=alt.X(
                "layer:Q",
                title="layer",
                scale=alt.Scale(domain=[-0.5, count - 0.5], nice=False),
                axis=alt.Axis(tickMinStep=1, grid=False),
            ),
            y=alt.Y("per_mille:Q", title="neurons, ‰ of the layer", axis=alt.Axis(grid=True)),
            color=alt.Color("sign:N", scale=alt.Scale(domain=names, range=colours)),
            order=alt.Order("sign:N"),
        )
        .properties(width=_WIDTH, height=150)
    )


def error_map(errors: pl.DataFrame, precisions: Sequence[str]) -> alt.LayerChart:
    """Draw the relative error of each neuron at each precision: neuron, precision and error."""
    neurons = errors["neuron"].unique(maintain_order=True).to_list()
    step = max(34, min(64, _WIDTH // len(precisions)))
    top = float(errors["relative_error"].max() or 1)  # type: ignore[arg-type]
    base = alt.Chart(errors).encode(
        x=alt.X(
            "precision:N",
            sort=list(precisions),
            title=None,
            axis=alt.Axis(orient="top", labelAngle=-40, ticks=False, domain=False, labelLimit=160),
        ),
        y=alt.Y(
            "neuron:N",
            sort=neurons,
            title="neuron, layer:index, by weight",
            axis=alt.Axis(ticks=False, domain=False),
        ),
    )
    colour = alt.Color(
        "relative_error:Q",
        title="relative error",
        scale=alt.Scale(domain=[0, top], range=[_PALE, _DEEP]),
        legend=None,
    )
    words = base.mark_text(fontSize=9.5).encode(
        text=alt.Text("relative_error:Q", format=".2f"),
        color=alt.condition(
            alt.datum.relative_error > 0.55 * top, alt.value(_LIGHT), alt.value(_DARK)
        ),
    )
    return alt.layer(base.mark_rect(stroke="#fefefe").encode(color=colour), words).properties(
        width=alt.Step(step), height=alt.Step(17)
    )


def pareto(points: pl.DataFrame, column: str, title: str) -> alt.LayerChart:
    """Draw AUROC with its interval against a cost or speed: precision, auroc, ends, `best`."""
    x = alt.X(f"{column}:Q", title=title, scale=alt.Scale(zero=False, nice=True, padding=24))
    y = alt.Y(
        "auroc:Q",
        title="AUROC of the FP16 probe",
        scale=alt.Scale(zero=False),
        axis=alt.Axis(grid=True),
    )
    base = alt.Chart(points).encode(x=x)
    front = points.filter(pl.col("best")).sort(column)
    return alt.layer(
        alt.Chart(front)
        .mark_line(color=VERMILION, strokeWidth=1.5, strokeDash=[5, 3])
        .encode(x=x, y=y),
        base.mark_rule(color=BLUE, strokeWidth=1, opacity=0.55).encode(
            y=alt.Y("auroc_low:Q", title="AUROC of the FP16 probe", scale=alt.Scale(zero=False)),
            y2="auroc_high:Q",
        ),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            y=y,
            color=alt.Color(
                "front:N",
                scale=alt.Scale(
                    domain=["no other is better in both", "another is better in both"],
                    range=[VERMILION, BLUE],
                ),
            ),
            shape=alt.Shape(
                "front:N",
                scale=alt.Scale(
                    domain=["no other is better in both", "another is better in both"],
                    range=["diamond", "circle"],
                ),
            ),
        ),
        *_labels(points, column, x, y),
    ).properties(width=_WIDTH, height=_HEIGHT)


def _labels(points: pl.DataFrame, column: str, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Return the names of the points, each at the nearest free place around its point."""
    wide = max(np.ptp(points[column].to_numpy()), 1e-9)
    high = max(np.ptp(points.select("auroc_low", "auroc_high").to_numpy()), 1e-9)
    taken: list[tuple[float, float, float]] = []  # left, right and y of labels and points
    placed: list[alt.Chart] = []
    rows = points.sort("auroc", descending=True).rows(named=True)
    edge = _WIDTH * 0.9 * min(row[column] for row in rows) / wide
    for row in rows:
        left = _WIDTH * 0.9 * row[column] / wide
        taken.append((left - 4, left + 4, -_HEIGHT * row["auroc"] / high))
    for row in rows:
        at, level = _WIDTH * 0.9 * row[column] / wide, -_HEIGHT * row["auroc"] / high
        size = 5.6 * len(row["precision"])
        for dy, side in product((0, -11, 11, -22, 22, -33, 33, -44, 44), (1, -1)):
            start = at + 8 if side == 1 else at - 8 - size
            if start > edge - 20 and all(
                start > right or start + size < left or abs(level + dy - height) > 10
                for left, right, height in taken
            ):
                taken.append((start, start + size, level + dy))
                break
        placed.append(
            alt.Chart(pl.DataFrame([row]))
            .mark_text(
                align="left" if side == 1 else "right", dx=8 * side, dy=dy, fontSize=10, color=INK
            )
            .encode(x=x, y=y, text="precision:N")
        )
    return placed
