"""The report of steps: whether the probe finds the wrong step of an answer of several steps."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from harness.report.grids import grid
from harness.report.page import Block, Figure, Part, Prose, Section
from harness.report.run import REFERENCE, RunFolder
from harness.report.traced import traced, unmarked
from harness.tables.readme_cells import Cells

_LOOKS = {
    "probe": Look(BLUE, "circle"),
    "entropy": Look(GREEN, "triangle-down"),
    "log-prob": Look(SKY, "diamond"),
    "length": Look(GREY, "square"),
    "text": Look(VERMILION, "square"),
    "position": Look(ORANGE, "triangle-up"),
    "chance": Look(PURPLE, "cross"),
}


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of steps."""
    t = run.tables
    span = t.rows("detection")[0]["span"]
    where: Cells = {"precision": REFERENCE, "span": span, "step": "all", "scorer": "probe"}
    (row,) = t.rows("detection", **where)
    if row["auroc"] is None:
        answer = f"The probe has no AUROC over steps: {unmarked(str(row['note']))}."
        second = ""
    else:
        answer = (
            f"Over {t.count('detection', 'n', **where)} steps, "
            f"{t.count('detection', 'wrong', **where)} of them wrong, in "
            f"{t.count('detection', 'units', **where)} units, the FP16 probe separates wrong from "
            f"right steps with an AUROC of **{t.estimate('detection', 'auroc', **where)}**; text "
            "has "
            f"{_auroc(run, where, 'text')}, token entropy {_auroc(run, where, 'entropy')}."
        )
        only: Cells = {"precision": REFERENCE, "span": span, "rule": "only wrong"}
        second = (
            "In answers with one wrong step, the step with the highest probe score is the wrong "
            "one "
            f"in {t.estimate('localisation', 'wrong', 2, scorer='probe', **only)}; by chance "
            f"{t.estimate('localisation', 'wrong', 2, scorer='chance', **only)}."
            if t.rows("localisation", scorer="probe", **only)
            and t.rows("localisation", scorer="chance", **only)
            else ""
        )
    notes = [str(r["note"]) for r in t.rows("answers") if r["note"]]
    warning = traced(unmarked("; ".join(notes)), "answers.csv: note") + "." if notes else ""
    warning = f"These answers cannot test everything: {warning}" if warning else ""
    return Part(
        [s for s in (answer, second) if s], [_detection(run, span), _located(run, span)], warning
    )


def _auroc(run: RunFolder, where: Cells, scorer: str) -> str:
    rows = run.tables.rows("detection", **{**where, "scorer": scorer})
    if not rows or rows[0]["auroc"] is None:
        return "no value"
    return run.tables.estimate("detection", "auroc", **{**where, "scorer": scorer})


def _detection(run: RunFolder, span: str) -> Section:
    frame = run.frame("detection").filter(span=span)
    row = pl.concat_str("precision", pl.lit(", step "), pl.col("step").cast(pl.String))
    points = points_of(frame, "auroc", row, pl.col("scorer"))
    if not points.height:
        return Section("Wrong steps", [Prose("No step has an AUROC; see `note`.", "absent")])
    figure = Figure(
        "AUROC of wrong against right steps",
        f"Scored over the tokens of `{span}`, by precision and step; `all`: pairs within a step.",
        forest(points, _LOOKS, "AUROC, 95% intervals", rule=0.5),
        points.rename({"series": "score"}),
        "`detection.csv`: auroc",
    )
    columns = {c: c for c in run.columns("answers") if c != "note"}
    answers = grid(run, "answers", "Answers that are scored", columns)
    return Section("Wrong steps", [figure, answers], "`detection.csv`, `answers.csv`")


def _located(run: RunFolder, span: str) -> Section:
    frame = run.frame("localisation").filter(span=span, precision=REFERENCE)
    points = points_of(frame, "wrong", pl.col("rule"), pl.col("scorer"))
    blocks: list[Block] = [Prose("No step was located.", "absent")]
    if points.height:
        blocks = [
            Figure(
                "Share of answers whose first wrong step is located, at FP16",
                "By rule; `chance` and `position` need no model.",
                forest(points, _LOOKS, "share located, 95% intervals"),
                points.rename({"row": "rule", "series": "score"}),
                "`localisation.csv`: wrong",
            )
        ]
    return Section("Localisation", blocks, "`localisation.csv`")
