"""The report of distributions: where the H-Neurons are, and how their CETT differs by label."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.distributions import distributions
from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREY, VERMILION
from harness.report.grids import grid
from harness.report.page import Figure, Part, Section
from harness.report.run import RunFolder
from harness.tables.readme_cells import Cells, code, listed

_LOOKS = {
    "h": Look(BLUE, "circle"),
    "matched": Look(VERMILION, "square"),
    "random": Look(GREY, "diamond"),
}


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of distributions."""
    t = run.tables
    first = t.rows("sets")[0]["precision"]
    h, matched = ({"precision": first, "neurons": name} for name in ("h", "matched"))
    place: Cells = {"precision": first}
    answer = (
        f"On {t.count('sets', 'n', **h)} answers in {t.count('sets', 'units', **h)} units, the "
        f"{t.count('sets', 'size', **h)} H-Neurons have a mean Cliff's delta of "
        f"**{t.estimate('sets', 'delta', signed=True, **h)}** between hallucinated and right "
        f"answers at {first} (neurons of the same layers and magnitudes: "
        f"{t.estimate('sets', 'delta', signed=True, **matched)}); on answers that did not select "
        f"them it is {t.estimate('sets', 'held_out', signed=True, **h)}."
    )
    few = [row["precision"] for row in t.rows("placement") if row["p"] < 0.05]
    second = (
        f"They are in {t.count('placement', 'layers', **place)} layers, where chance gives "
        f"{t.number('placement', 'expected_layers', 1, **place)} (p = "
        f"{t.number('placement', 'p', 4, **place)}); fewer layers than by chance (p below 0.05) at "
        f"{listed(code(few))}."
    )
    figure = Figure(
        "Density per layer, CETT by label, and the effect of each H-Neuron",
        f"One row per precision. {second} Boxes are quartiles of CETT divided by the neuron's "
        "mean.",
        distributions(run.path),
        run.frame("quantiles"),
        "`density.csv`, `quantiles.csv`, `effects.csv`",
    )
    points = points_of(run.frame("sets"), "delta", pl.col("precision"), pl.col("neurons"))
    effects = Figure(
        "Mean Cliff's delta of the H-Neurons and of the controls",
        "Above 0: higher CETT in hallucinated answers. Matched and random: 95% of the draws.",
        forest(points, _LOOKS, "mean Cliff's delta, 95% intervals", rule=0),
        points.rename({"row": "precision", "series": "neurons"}),
        "`sets.csv`: delta",
    )
    sections = [
        Section("Distributions", [figure], "`density.csv`, `quantiles.csv`, `effects.csv`"),
        Section("Effects", [effects, grid(run, "placement")], "`sets.csv`, `placement.csv`"),
    ]
    return Part([answer, second], sections)
