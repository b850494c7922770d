"""The specification curve: estimates of every combination of choices, above a matrix of choices.

After Simonsohn, Simmons & Nelson (2020), "Specification curve analysis", Nature Human Behaviour 4.
"""

from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from harness.report.charts.style import BLUE, EDGE, VERMILION
from harness.tables.files import read_table

CHOICES = ("cett", "tokens", "labels", "rule", "folds", "samples")
"""Columns whose levels are the rows of the matrix."""
MARGIN = 0.02
"""The largest change of an AUROC that counts as negligible, as in the table."""
_OWN, _OTHERS = "the study's own", "one of the others"


def specification_curve(run: Path) -> alt.TopLevelMixin:
    """Draw the AUROC at FP16 and the change at each other precision, sorted by the AUROC."""
    rows = read_table(run, "specifications").with_columns(
        kind=pl.when(pl.col("changes") == 0).then(pl.lit(_OWN)).otherwise(pl.lit(_OTHERS))
    )
    precisions = rows["precision"].unique(maintain_order=True).to_list()
    reference = rows.filter(pl.col("precision") == precisions[0]).sort("auroc", maintain_order=True)
    order = reference.select(CHOICES).with_row_index("place")
    width = max(440, 11 * reference.height)
    scale = alt.Scale(domain=[-1, reference.height], nice=False)
    panels = [
        _estimates(
            order.join(reference, on=CHOICES, how="left", maintain_order="left"),
            "auroc",
            f"AUROC, {precisions[0]}",
            scale,
        ).properties(width=width, height=170)
    ]
    for precision in precisions[1:]:
        of_precision = rows.filter(pl.col("precision") == precision)
        joined = order.join(of_precision, on=CHOICES, how="left", maintain_order="left")
        joined = joined.filter(pl.col("change").is_not_null())
        band = (
            alt.Chart(pl.DataFrame({"low": [-MARGIN], "high": [MARGIN]}))
            .mark_rect(color=EDGE, opacity=0.18)
            .encode(y=alt.Y("low:Q", title=f"change, {precision}"), y2="high:Q")
        )
        zero = alt.Chart().mark_rule(color=EDGE, strokeDash=[3, 3]).encode(y=alt.datum(0))
        estimates = _estimates(joined, "change", f"change, {precision}", scale)
        panels.append(alt.layer(band, zero, estimates).properties(width=width, height=105))
    n, units = reference.filter(pl.col("changes") == 0).select("n", "units").row(0)
    title = f"{reference.height} specifications by AUROC, with 95% intervals (band: ±{MARGIN})"
    own = f"{_OWN}: {n} samples in {units} units"
    panels.append(_matrix(rows, reference, order, scale, f"{title}; {own}", width))
    return alt.vconcat(*panels, spacing=10)


def _x(scale: alt.Scale, title: str | None = None) -> alt.X:
    axis = alt.Axis(labels=False, ticks=False, domain=False, grid=False)
    return alt.X("place:Q", title=title, scale=scale, axis=axis)


def _look() -> dict[str, Any]:
    domain = [_OTHERS, _OWN]
    return {
        "color": alt.Color("kind:N", scale=alt.Scale(domain=domain, range=[BLUE, VERMILION])),
        "shape": alt.Shape("kind:N", scale=alt.Scale(domain=domain, range=["circle", "diamond"])),
    }


def _estimates(rows: pl.DataFrame, column: str, title: str, scale: alt.Scale) -> alt.LayerChart:
    """Draw a column with its intervals, the study's own specification in another colour."""
    look = _look()
    y: dict[str, Any] = {
        "title": title,
        "scale": alt.Scale(zero=False),
        "axis": alt.Axis(grid=True, tickCount=5),
    }
    base = alt.Chart(rows).encode(x=_x(scale), color=look["color"])
    return alt.layer(
        base.mark_rule(strokeWidth=1).encode(
            y=alt.Y(f"{column}_low:Q", **y), y2=f"{column}_high:Q"
        ),
        base.mark_point(filled=True, opacity=1, size=24).encode(
            y=alt.Y(f"{column}:Q", **y), shape=look["shape"]
        ),
    )


def _matrix(
    rows: pl.DataFrame,
    reference: pl.DataFrame,
    order: pl.DataFrame,
    scale: alt.Scale,
    title: str,
    width: int,
) -> alt.Chart:
    """Draw a mark where a specification has a level."""
    levels = [
        f"{choice}: {level}"
        for choice in CHOICES
        for level in rows[choice].unique(maintain_order=True).to_list()
    ]
    kinds = reference.select(*CHOICES, "kind")
    cells = (
        order.join(kinds, on=CHOICES, maintain_order="left")
        .unpivot(list(CHOICES), index=["place", "kind"], variable_name="choice", value_name="level")
        .with_columns(level=pl.concat_str("choice", pl.lit(": "), "level"))
    )
    y = alt.Y(
        "level:N", sort=levels, title=None, axis=alt.Axis(ticks=False, domain=False, grid=True)
    )
    return (
        alt.Chart(cells)
        .mark_point(filled=True, opacity=1, size=24)
        .encode(x=_x(scale, title), y=y, **_look())
        .properties(width=width, height=alt.Step(14))
    )
