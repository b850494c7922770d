"""The report of detectors: H-Neurons compared with other detectors on the same answers."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from harness.report.grids import grid, of_frame
from harness.report.page import Figure, Part, Prose, Section
from harness.report.run import REFERENCE, RunFolder
from harness.tables.evidence_findings import adds_to, beaten_by, beats
from harness.tables.readme_cells import Cells, code, listed

_COLOURS, _SHAPES = (
    (BLUE, VERMILION, GREEN, ORANGE, PURPLE),
    ("circle", "square", "diamond", "triangle-up", "triangle-down"),
)
_OWN, _COSTS = "h-neurons", "costs.csv"


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of detectors."""
    t = run.tables
    ranked = sorted(t.rows("detectors", precision=REFERENCE), key=lambda row: -float(row["auroc"]))
    best = ranked[0]["detector"]
    own: Cells = {"precision": REFERENCE, "detector": _OWN}
    top: Cells = {"precision": REFERENCE, "detector": best}
    better, worse = beaten_by(t, REFERENCE), beats(t, REFERENCE)
    added = adds_to(t, REFERENCE)
    answer = (
        f"On {t.count('detectors', 'n', **own)} answers in {t.count('detectors', 'units', **own)} "
        f"units at FP16, H-Neurons have an AUROC of **{t.estimate('detectors', 'auroc', **own)}**; "
        f"the highest of {len(ranked)} detectors is `{best}` with "
        f"{t.estimate('detectors', 'auroc', **top)}."
    )
    second = (
        f"Of the {len(ranked) - 1} others, {len(better)} have a higher AUROC than H-Neurons "
        f"({listed(code(better))}) and {len(worse)} a lower one ({listed(code(worse))}), with p "
        f"below 0.05 after Holm's correction; H-Neurons improve the probabilities of {len(added)} "
        f"({listed(code(added))})."
    )
    return Part([answer, second], [_aurocs(run, ranked), _nested(run), _costs(run)])


def _aurocs(run: RunFolder, ranked: Sequence[dict[str, object]]) -> Section:
    frame = run.frame("detectors")
    precisions = frame["precision"].unique(maintain_order=True).to_list()
    names = [str(row["detector"]) for row in ranked]
    points = points_of(frame, "auroc", pl.col("detector"), pl.col("precision"))
    figure = Figure(
        "AUROC of each detector at each precision",
        f"The highest at FP16 first: {', '.join(names)}. Fitted detectors are scored out of fold.",
        forest(points, _looks(precisions), "AUROC, 95% intervals", rule=0.5, rows=names),
        points.rename({"row": "detector", "series": "precision"}),
        "`detectors.csv`: auroc",
    )
    at = frame.filter(precision=REFERENCE).sort("auroc", descending=True)
    table = grid(
        run,
        "detectors",
        "Detectors at FP16",
        {
            "detector": "detector",
            "auroc": "AUROC",
            "probe_minus": "H-Neurons − detector",
            "p": "p (Holm)",
            "passes": "further passes",
            "about": "what it scores",
        },
        at,
    )
    return Section("Detectors", [figure, table], "`detectors.csv`")


def _nested(run: RunFolder) -> Section:
    frame = run.frame("nested").filter(precision=REFERENCE).sort("probe_adds", descending=True)
    columns = (("probe_adds", "H-Neurons add"), ("detector_adds", "detector adds to H-Neurons"))
    points = pl.concat(
        [points_of(frame, column, pl.col("detector"), pl.lit(name)) for column, name in columns]
    )
    looks = {columns[0][1]: Look(BLUE, "circle"), columns[1][1]: Look(VERMILION, "square")}
    figure = Figure(
        "What H-Neurons add to each detector, and it to them, at FP16",
        "Gain of AUROC from both scores over one of them. Above 0: the added score has information "
        "that the other lacks.",
        forest(points, looks, "gain of AUROC, 95% intervals", rule=0),
        points.rename({"row": "detector", "series": "gain"}),
        "`nested.csv`: probe_adds, detector_adds",
    )
    return Section("Nested gains", [figure], "`nested.csv`")


def _costs(run: RunFolder) -> Section:
    costs = run.file(_COSTS)
    if costs is None:
        text = (
            f"Times are not shown: the folder has no `{_COSTS}`, which a run on one machine writes."
        )
        return Section("Costs", [Prose(text, "absent")])
    labels = {"seconds_per_answer": "seconds per answer", "ratio_to_generation": "× generation"}
    table = of_frame("Time of each detector", costs.rename(labels), f"`{_COSTS}`", folded=False)
    return Section("Costs", [table], f"`{_COSTS}`, of the machine that ran it")


def _looks(precisions: Sequence[str]) -> dict[str, Look]:
    count = len(_COLOURS)
    return {
        name: Look(_COLOURS[i % count], _SHAPES[i % count], filled=i < count)
        for i, name in enumerate(precisions)
    }
