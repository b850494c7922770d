"""The report of specifications: whether the result depends on choices of the analysis."""

from collections.abc import Sequence

from harness.report.charts.specifications import CHOICES, specification_curve
from harness.report.grids import grid
from harness.report.page import Figure, Part, Section
from harness.report.run import REFERENCE, RunFolder
from harness.tables.readme_cells import listed


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of specifications."""
    t = run.tables
    every = [row for row in t.rows("curve") if row["scope"] == "all"] or t.rows("curve")
    at = {"precision": REFERENCE, "scope": every[0]["scope"]}
    answer = (
        f"Over {t.count('curve', 'specifications', **at)} specifications, the AUROC at FP16 is "
        f"{t.number('curve', 'auroc_least', **at)} to {t.number('curve', 'auroc_most', **at)} "
        "with a "
        f"median of **{t.number('curve', 'auroc_median', **at)}**; the study's own has "
        f"{t.number('curve', 'auroc', **at)}, and a share of "
        f"{t.number('curve', 'above_chance', 2, **at)} has an interval above 0.5."
    )
    changes = [
        f"{t.number('curve', 'change_least', signed=True, **of)} to "
        f"{t.number('curve', 'change_most', signed=True, **of)} at `{row['precision']}`, with the "
        f"verdict of the study's own ({row['verdict']}) in a share of "
        f"{t.number('curve', 'same_verdict', 2, **of)}"
        for row in every
        if row["precision"] != REFERENCE
        for of in ({"precision": row["precision"], "scope": row["scope"]},)
    ]
    second = (
        f"The change from FP16 is {listed(changes)}."
        if changes
        else "The run has FP16 only, so there is no change."
    )
    figure = Figure(
        "Specification curve",
        f"Each column is one combination of {listed(list(CHOICES))}, ordered by its AUROC. "
        f"{second}",
        specification_curve(run.path),
        run.frame("specifications").select("precision", *CHOICES, "auroc", "change"),
        "`specifications.csv`: auroc, change",
    )
    influence = grid(
        run,
        "influence",
        "Which choice matters",
        {
            "precision": "precision",
            "choice": "choice",
            "levels": "levels",
            "auroc_share": "share of the variance of the AUROC",
            "auroc_range": "range",
            "auroc_low": "lowest",
            "auroc_high": "highest",
        },
    )
    sections = [
        Section("Curve", [figure, grid(run, "curve", folded=True)], "`specifications.csv`"),
        Section(
            "Choices and stability",
            [influence, grid(run, "stability", "How alike the selected sets are")],
            "`influence.csv`, `stability.csv`",
        ),
    ]
    return Part([answer, second], sections)
