"""The report of conditions: which H-Neurons meet the three conditions of the article."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, VERMILION
from harness.report.grids import grid
from harness.report.page import Figure, Part, Section
from harness.report.run import RunFolder
from harness.tables.files import neuron_names
from harness.tables.readme_cells import Cells

_LOOKS = {
    "on its own samples": Look(BLUE, "circle"),
    "held out": Look(GREEN, "diamond"),
    "second scenario": Look(VERMILION, "square"),
}
_COLUMNS = dict(zip(("auroc", "auroc_held_out", "auroc_cross"), _LOOKS, strict=True))


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of conditions."""
    t = run.tables
    row = t.rows("counts")[0]
    where: Cells = {key: row[key] for key in ("precision", "tau", "tau_cross")}
    precision = row["precision"]
    answer = (
        f"At {precision}, with thresholds of {t.number('counts', 'tau', **where)} and "
        f"{t.number('counts', 'tau_cross', **where)}, "
        f"**{t.count('counts', 'h_all', **where)} of {t.count('counts', 'h_neurons', **where)}** "
        f"H-Neurons meet all three conditions, {t.count('counts', 'h_held_out', **where)} of them "
        "if "
        "condition 2 uses answers that did not select the neuron, and "
        f"{t.count('counts', 'h_shown', **where)} by the lower ends of the intervals."
    )
    held: Cells = {"precision": precision}
    second = (
        "Selection makes a neuron look better by "
        f"{t.estimate('held_out', 'optimism', signed=True, **held)} of AUROC: "
        f"{t.estimate('held_out', 'auroc_selected_on', **held)} on the answers that selected it, "
        f"{t.estimate('held_out', 'auroc_held_out', **held)} on others."
    )
    chosen = run.frame("conditions").filter(precision=precision).sort("auroc", descending=True)
    name = neuron_names(chosen)
    points = pl.concat(
        [points_of(chosen, column, name, pl.lit(label)) for column, label in _COLUMNS.items()]
    )
    figure = Figure(
        f"AUROC of each H-Neuron alone at {precision}",
        f"{chosen.height} H-Neurons, the highest first. {second}",
        forest(points, _LOOKS, "AUROC of the neuron's CETT, 95% intervals", rule=0.5),
        points.rename({"row": "neuron", "series": "samples"}),
        "`conditions.csv`: auroc, auroc_held_out, auroc_cross",
    )
    counts = grid(
        run,
        "counts",
        "Neurons that meet the conditions, by thresholds",
        {
            "precision": "precision",
            "tau": "tau",
            "tau_cross": "tau, second scenario",
            "h_second": "H: condition 2",
            "h_third": "H: condition 3",
            "h_all": "H: all",
            "h_shown": "H: all, shown",
            "both": "all neurons: 2 and 3",
            "both_chance": "by chance",
            "both_p": "p",
        },
    )
    sections = [
        Section("Single neurons", [figure], "`conditions.csv`"),
        Section("Counts", [counts, grid(run, "scenarios")], "`counts.csv`, `scenarios.csv`"),
    ]
    return Part([answer, second], sections)
