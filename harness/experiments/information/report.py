"""The report of information: mutual information between single neurons and the label."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, GREY, VERMILION
from harness.report.grids import grid
from harness.report.page import Block, Figure, Part, Section
from harness.report.run import RunFolder
from harness.tables.files import neuron_names
from harness.tables.readme_cells import Cells

_LOOKS = {
    "H-Neurons": Look(BLUE, "circle"),
    "H-Neurons, held out": Look(GREEN, "diamond"),
    "matched": Look(VERMILION, "square"),
    "random": Look(GREY, "triangle-up"),
}
_COLUMNS = dict(zip(("information", "held_out", "matched", "random"), _LOOKS, strict=True))


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of information."""
    t = run.tables
    where: Cells = {"precision": t.rows("information")[0]["precision"]}
    answer = (
        f"On {t.count('information', 'n', **where)} answers in "
        f"{t.count('information', 'units', **where)} units at {where['precision']}, an H-Neuron "
        "has "
        f"**{t.estimate('information', 'information', 4, **where)}** bits of mutual information "
        "with "
        "the label on average; matched neurons have "
        f"{t.estimate('information', 'matched', 4, **where)}."
    )
    second = (
        "On answers that did not select the neuron it is "
        f"{t.estimate('information', 'held_out', 4, **where)}; "
        f"{t.count('information', 'significant', **where)} of "
        f"{t.count('information', 'h_neurons', **where)} H-Neurons and "
        f"{t.count('information', 'all_significant', **where)} neurons of the whole model have "
        "more "
        "than none (corrected for multiple tests)."
    )
    frame = run.frame("information")
    points = pl.concat(
        [
            points_of(frame, column, pl.col("precision"), pl.lit(label))
            for column, label in _COLUMNS.items()
        ]
    )
    main = Figure(
        "Mean mutual information per neuron and label",
        f"{second} Matched and random: 95% of the draws.",
        forest(points, _LOOKS, "mean mutual information, bits, 95% intervals", rule=0),
        points.rename({"row": "precision", "series": "neurons"}),
        "`information.csv`: information, held_out, matched, random",
    )
    first = run.frame("neurons").filter(**where).sort("information", descending=True)
    name = neuron_names(first)
    single = points_of(first, "information", name, pl.lit("H-Neurons"))
    each = Figure(
        f"Mutual information of each H-Neuron at {where['precision']}",
        f"{single.height} H-Neurons, the highest first.",
        forest(single, _LOOKS, "mutual information, bits, 95% intervals", rule=0),
        single.drop("series").rename({"row": "neuron"}),
        "`neurons.csv`: information",
    )
    blocks: list[Block] = [main, each, grid(run, "information", folded=True)]
    return Part(
        [answer, second], [Section("Information", blocks, "`information.csv`, `neurons.csv`")]
    )
