"""The specification curve: estimates of every combination of choices, above a matrix of choices.

After Simonsohn, Simmons & Nelson (2020), "Specification curve analysis", Nature Human Behaviour 4.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from harness.tables.files import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHOICES = ("cett", "tokens", "labels", "rule", "folds", "samples")
"""Columns whose levels are the rows of the matrix."""
_OTHER, _OWN, _BAND = "#0072B2", "#D55E00", "#bbbbbb"
_MARGIN = 0.02  # of the verdict on a change


def specification_curve(run: Path) -> "Figure":
    """Draw the AUROC at FP16 and the change at each other precision, sorted by the AUROC."""
    from matplotlib.figure import Figure

    rows = read_table(run, "specifications")
    precisions = rows["precision"].unique(maintain_order=True).to_list()
    reference = rows.filter(pl.col("precision") == precisions[0]).sort("auroc", maintain_order=True)
    levels = [
        (choice, level)
        for choice in CHOICES
        for level in rows[choice].unique(maintain_order=True).to_list()
    ]
    heights = [2.2, *(1.5 for _ in precisions[1:]), 0.17 * len(levels) + 0.1 * len(CHOICES)]
    figure = Figure(
        figsize=(2.2 + 0.11 * max(reference.height, 40), 0.8 + sum(heights)), layout="constrained"
    )
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _estimates(panels[0], reference, "auroc")
    own = reference.filter(pl.col("changes") == 0)["auroc"][0]
    panels[0].axhline(own, color=_OWN, lw=0.7, zorder=0)
    panels[0].set_ylabel(f"AUROC, {precisions[0]}", fontsize=9)
    order = reference.select(CHOICES)
    for axes, precision in zip(panels[1:-1], precisions[1:], strict=True):
        of_precision = rows.filter(pl.col("precision") == precision)
        joined = order.join(of_precision, on=CHOICES, how="left", maintain_order="left")
        axes.axhspan(-_MARGIN, _MARGIN, color=_BAND, alpha=0.35, lw=0)
        axes.axhline(0, color=_BAND, lw=0.8, zorder=0)
        _estimates(axes, joined, "change")
        axes.set_ylabel(f"change,\n{precision}", fontsize=9)
    _matrix(panels[-1], reference, levels)
    n, units = reference.filter(pl.col("changes") == 0).select("n", "units").row(0)
    panels[-1].set_xlabel(
        f"{reference.height} specifications by AUROC, with 95% intervals (band: ±{_MARGIN});\n"
        f"orange: the study's own, {n} samples in {units} units",
        fontsize=9,
    )
    figure.align_ylabels(panels)
    return figure


def _estimates(axes: "Axes", rows: pl.DataFrame, column: str) -> None:
    """Draw a column with its intervals, the study's own specification in another colour."""
    own = rows["changes"].to_numpy() == 0
    for chosen, colour, marker in ((~own, _OTHER, "o"), (own, _OWN, "D")):
        x = np.flatnonzero(chosen)
        value = rows[column].to_numpy()[x]
        spread = abs(rows.select(f"{column}_low", f"{column}_high").to_numpy()[x].T - value)
        axes.errorbar(x, value, yerr=spread, fmt=marker, color=colour, ms=3, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", bottom=False)


def _matrix(axes: "Axes", rows: pl.DataFrame, levels: list[tuple[str, str]]) -> None:
    """Draw a dot where a specification has a level; a gap separates the choices."""
    own = rows["changes"].to_numpy() == 0
    ticks, labels, y, previous = [], [], 0.0, levels[0][0]
    for choice, level in levels:
        y += 1.0 if choice == previous else 1.6
        previous = choice
        has = (rows[choice] == level).to_numpy()
        for chosen, colour in ((has & ~own, _OTHER), (has & own, _OWN)):
            x = np.flatnonzero(chosen)
            axes.plot(x, np.full(len(x), y), "s", color=colour, ms=3, mew=0)
        ticks.append(y)
        labels.append(f"{choice}: {level}")
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_xticks([])
    axes.set_xlim(-1, rows.height)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
