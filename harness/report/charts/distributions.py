"""The picture of distributions: density per layer, CETT by label, Cliff's delta."""

from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from harness.report.charts.style import BLUE, EDGE, GREEN, GREY, INK, VERMILION
from harness.tables.files import neuron_names, read_table

_SETS = {"h": "H-Neurons", "matched": "matched", "random": "random"}
_LABELS, _COLOURS = ["right answers", "hallucinated answers"], [BLUE, VERMILION]
_WIDTH, _HEIGHT = 215, 150
_TITLES = (
    ["H-Neurons per layer, ‰, identified", "at the precision; band: 95% of chance"],
    ["CETT ÷ the neuron's mean:", "quartiles, 5% and 95%"],
    ["Cliff's delta of each H-Neuron, largest", "first; band: 95% of matching neurons"],
)


def distributions(run: Path) -> alt.TopLevelMixin:
    """Draw a row of three panels per precision."""
    tables = {name: read_table(run, name) for name in ("density", "quantiles", "effects", "sets")}
    precisions = tables["sets"]["precision"].unique(maintain_order=True).to_list()
    rows = []
    for i, precision in enumerate(precisions):
        of = {n: t.filter(pl.col("precision") == precision) for n, t in tables.items()}
        panels = (
            _density(of["density"], precision),
            _cett(of["quantiles"], has_legend=i == 0),
            _effects(of["effects"]),
        )
        titled = [
            panel.properties(width=_WIDTH, height=_HEIGHT, **({"title": title} if i == 0 else {}))
            for panel, title in zip(panels, _TITLES, strict=True)
        ]
        rows.append(alt.hconcat(*titled, spacing=18).resolve_scale(color="independent"))
    n, units = tables["sets"].select("n", "units").row(0)
    caption = alt.Title(
        f"{n:,} samples in {units:,} units",
        orient="bottom",
        fontWeight="normal",
        fontSize=11.5,
        anchor="middle",
    )
    return alt.vconcat(*rows, title=caption, spacing=16).resolve_scale(color="shared")


def _density(density: pl.DataFrame, precision: str) -> alt.LayerChart:
    """Draw bars of the layers, and the hypergeometric interval as a band."""
    x = alt.X(
        "layer:Q",
        title="layer",
        scale=alt.Scale(domain=[-0.5, density.height - 0.5], nice=False),
        axis=alt.Axis(grid=False, tickMinStep=1, tickCount=6),
    )
    title = f"{precision}, ‰"
    return alt.layer(
        alt.Chart(density)
        .mark_area(color=GREY, opacity=0.3, interpolate="step")
        .encode(x=x, y=alt.Y("expected_low:Q", title=title), y2="expected_high:Q"),
        alt.Chart(density)
        .mark_bar(color=GREEN, size=max(2, _WIDTH // max(density.height, 1) - 2))
        .encode(x=x, y=alt.Y("per_mille:Q", title=title)),
    )


def _cett(quantiles: pl.DataFrame, has_legend: bool) -> alt.LayerChart:
    """Draw a box of each set of neurons and label, from its quantiles."""
    named = quantiles.with_columns(
        set=pl.col("neurons").replace(_SETS),
        answers=pl.col("label").replace({"right": _LABELS[0], "hallucinated": _LABELS[1]}),
    )
    names = named["set"].unique(maintain_order=True).to_list()
    base = alt.Chart(named).encode(
        x=alt.X("set:N", sort=names, title="neurons", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("answers:N", sort=_LABELS),
        color=alt.Color(
            "answers:N",
            scale=alt.Scale(domain=_LABELS, range=_COLOURS),
            legend=alt.Legend(symbolType="square", symbolOpacity=1) if has_legend else None,
        ),
    )
    y: dict[str, Any] = {"title": None, "axis": alt.Axis(grid=True)}
    return alt.layer(
        base.mark_rule().encode(y=alt.Y("q05:Q", **y), y2="q95:Q"),
        base.mark_bar(size=18, opacity=0.75).encode(y=alt.Y("q25:Q", **y), y2="q75:Q"),
        base.mark_tick(thickness=2, size=18, opacity=1).encode(
            y=alt.Y("q50:Q", **y), color=alt.value(INK)
        ),
    )


def _effects(effects: pl.DataFrame) -> alt.LayerChart:
    """Draw the delta of each H-Neuron with its interval, and that of its matched neurons."""
    ordered = effects.sort("delta", descending=True).with_columns(neuron=neuron_names(effects))
    x = alt.X(
        "neuron:N",
        sort=ordered["neuron"].to_list(),
        title="H-Neuron, layer:index",
        axis=alt.Axis(labelAngle=-90, labelFontSize=8),
    )
    base = alt.Chart(ordered).encode(x=x)
    y: dict[str, Any] = {"title": None, "axis": alt.Axis(grid=True)}
    return alt.layer(
        base.mark_area(color=GREY, opacity=0.3).encode(
            y=alt.Y("matched_low:Q", **y), y2="matched_high:Q"
        ),
        alt.Chart().mark_rule(color=EDGE).encode(y=alt.datum(0)),
        base.mark_rule(color=VERMILION).encode(y=alt.Y("delta_low:Q", **y), y2="delta_high:Q"),
        base.mark_point(filled=True, color=VERMILION, opacity=1, size=22).encode(
            y=alt.Y("delta:Q", **y)
        ),
    )
