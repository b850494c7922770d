"""Picture of the experiment distributions: density per layer, CETT by label, Cliff's delta."""

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from harness.tables.files import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe & Ito).
_RIGHT, _HALLUCINATED, _BAND = "#0072B2", "#D55E00", "#999999"
_SETS = {"h": "H-Neurons", "matched": "matched", "random": "random"}
_PANEL = 3.1, 2.6  # inches


def draw_distributions(run: Path) -> "Figure":
    """Draw a row of three panels per precision."""
    from matplotlib.figure import Figure

    tables = {name: read_table(run, name) for name in ("density", "quantiles", "effects", "sets")}
    precisions = tables["sets"]["precision"].unique(maintain_order=True).to_list()
    width, height = 3 * _PANEL[0], _PANEL[1] * len(precisions)
    figure = Figure(figsize=(width, 0.8 + height), layout="constrained")
    grid = figure.subplots(len(precisions), 3, squeeze=False)
    for row, precision in zip(grid, precisions, strict=True):
        of = {n: t.filter(pl.col("precision") == precision) for n, t in tables.items()}
        _density(row[0], of["density"])
        _cett(row[1], of["quantiles"])
        _effects(row[2], of["effects"])
        row[0].set_ylabel(f"{precision}\nper mille of the layer", fontsize=9)
        for axes in row:
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    for axes, title in zip(
        grid[0],
        (
            "H-Neurons per layer, identified\nat the precision",
            "CETT ÷ the neuron's mean:\nquartiles, 5% and 95%",
            "Cliff's delta of each H-Neuron,\nlargest first, 95% intervals",
        ),
        strict=True,
    ):
        axes.set_title(title, fontsize=9)
    for axes, label in zip(grid[-1], ("layer", "neurons", "H-Neuron, layer:index"), strict=True):
        axes.set_xlabel(label, fontsize=9)
    n, units = tables["sets"].select("n", "units").row(0)
    handles = [item for axes in grid[0] for item in axes.get_legend_handles_labels()[0]]
    names = [item for axes in grid[0] for item in axes.get_legend_handles_labels()[1]]
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
        title=f"{n} samples in {units} units",
        title_fontsize=8,
    )
    return figure


def _density(axes: "Axes", density: pl.DataFrame) -> None:
    """Draw bars of the layers, and the hypergeometric interval as a band."""
    layer, low, high = (density[c].to_numpy() for c in ("layer", "expected_low", "expected_high"))
    axes.fill_between(
        layer, low, high, step="mid", color=_BAND, alpha=0.3, lw=0, label="95% of random placements"
    )
    axes.bar(layer, density["per_mille"].to_numpy(), color="#009E73", label="H-Neurons per mille")


def _cett(axes: "Axes", quantiles: pl.DataFrame) -> None:
    """Draw a box of each set of neurons and label, from its quantiles."""
    for shift, (label, colour) in enumerate((("right", _RIGHT), ("hallucinated", _HALLUCINATED))):
        chosen = quantiles.filter(pl.col("label") == label)
        boxes = [
            {
                "whislo": row["q05"],
                "q1": row["q25"],
                "med": row["q50"],
                "q3": row["q75"],
                "whishi": row["q95"],
            }
            for row in chosen.iter_rows(named=True)
        ]
        positions = [i + 0.32 * (shift - 0.5) for i in range(len(boxes))]
        axes.bxp(
            boxes,
            positions=positions,
            widths=0.26,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": colour, "alpha": 0.55, "lw": 0.8},
            medianprops={"color": "black"},
            manage_ticks=False,
        )
        axes.bar([0], [0], color=colour, alpha=0.55, label=f"{label} answers")
    names = quantiles["neurons"].unique(maintain_order=True).to_list()
    axes.set_xticks(range(len(names)), [_SETS[name] for name in names])


def _effects(axes: "Axes", effects: pl.DataFrame) -> None:
    """Draw the delta of each H-Neuron with its interval, and that of its matched neurons."""
    ordered = effects.sort("delta", descending=True)
    x = range(len(ordered))
    low, high = (ordered[f"matched_{end}"].to_numpy() for end in ("low", "high"))
    axes.fill_between(
        x, low, high, color=_BAND, alpha=0.3, lw=0, label="95% of neurons that match it"
    )
    value = ordered["delta"].to_numpy()
    spread = abs(ordered.select("delta_low", "delta_high").to_numpy().T - value)
    axes.errorbar(
        x, value, yerr=spread, fmt="o", color=_HALLUCINATED, ms=3.5, capsize=2, lw=1, label="delta"
    )
    axes.axhline(0, color="#bbbbbb", lw=1, zorder=0)
    names = [f"{layer}:{index}" for layer, index in ordered.select("layer", "index").rows()]
    axes.set_xticks(x, names, rotation=90, fontsize=6)
