"""The report of origin: H-Neurons of a tuned model in its base, and what moved them."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE, GREEN, GREY, ORANGE, VERMILION
from harness.report.grids import grid
from harness.report.page import Bullets, Figure, Part, Prose, Section
from harness.report.run import RunFolder
from harness.tables.readme_cells import listed

PUBLISHED = {
    "Mistral-7B": "0.483 (not significant)",
    "Mistral-24B": "0.971",
    "Gemma-3-4B": "0.707",
    "Gemma-3-27B": "0.664",
    "Llama-3.1-8B": "0.584",
    "Llama-3.3-70B": "0.588",
}
"""Mean normalised ranks of arXiv 2512.01797."""
_LOOKS = {
    "probe": Look(BLUE, "circle"),
    "h-neurons": Look(VERMILION, "diamond"),
    "matched": Look(ORANGE, "square"),
    "random": Look(GREY, "square"),
    "refit": Look(GREEN, "triangle-up"),
}
_TUNED = "tuned"


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of origin."""
    answers = [_transferred(run), _ranked(run), _moved(run)]
    sections = [_transfer(run, answers[0]), _ranks(run), _distances(run)]
    return Part([answer for answer in answers if answer], sections)


def _transferred(run: RunFolder) -> str:
    t = run.tables
    precisions = list(dict.fromkeys(row["precision"] for row in t.rows("transfer")))
    areas = [
        t.estimate("transfer", "auroc", precision=p, scores="probe") + f" at `{p}`"
        for p in precisions
    ]
    first = {"precision": precisions[0]}
    return (
        "On the base model's own "
        f"{t.count('transfer', 'n', scores='probe', **first)} answers, the tuned model's probe, "
        f"without a refit, has an AUROC of {listed(areas)}; matched neurons have "
        f"{t.estimate('transfer', 'auroc', scores='matched', **first)} at `{precisions[0]}`."
    )


def _ranked(run: RunFolder) -> str:
    t = run.tables
    return (
        f"The mean normalised rank of {t.count('ranks', 'neurons', group='h-neurons')} H-Neurons "
        "(small rank = large change by tuning, 1 = the smallest change) is "
        f"{t.estimate('ranks', 'rank', group='h-neurons')}; one-sided p that they changed less: "
        f"{t.number('ranks', 'p_stable', group='h-neurons')} against all neurons, "
        f"{t.number('ranks', 'p_stable_matched', group='h-neurons')} against matched ones; that "
        f"they changed more: {t.number('ranks', 'p_changed', group='h-neurons')} and "
        f"{t.number('ranks', 'p_changed_matched', group='h-neurons')}."
    )


def _moved(run: RunFolder) -> str:
    t = run.tables
    changes = [row["change"] for row in t.rows("distances") if row["change"] != _TUNED]
    if not changes:
        return ""
    counts = [
        f"{t.count('distances', 'moved_more', change=change)} at `{change}`" for change in changes
    ]
    return (
        f"Of {t.count('distances', 'neurons', change=_TUNED)} H-Neurons, quantization of the base "
        f"moves the weights further than tuning did for {listed(counts)}."
    )


def _transfer(run: RunFolder, text: str) -> Section:
    frame = run.frame("transfer").filter(pl.col("scores").is_in([*_LOOKS]))
    points = points_of(frame, "auroc", pl.col("precision"), pl.col("scores"))
    figure = Figure(
        "AUROC on the base model's answers",
        text,
        forest(points, _LOOKS, "AUROC, 95% intervals over units or draws", rule=0.5),
        points.rename({"row": "precision", "series": "scores"}),
        "`transfer.csv`: auroc",
    )
    return Section("Transfer", [figure, grid(run, "transfer", "All controls")], "`transfer.csv`")


def _ranks(run: RunFolder) -> Section:
    published = [f"{model}: {mean}" for model, mean in PUBLISHED.items()]
    return Section(
        "Change by tuning",
        [
            grid(run, "ranks", "Normalised rank: small rank = large change"),
            Prose("Published mean ranks of H-Neurons (arXiv 2512.01797), in the same direction:"),
            Bullets(published),
            grid(run, "neuron_ranks", "Neurons of the set"),
        ],
        "`ranks.csv`, `neuron_ranks.csv`",
    )


def _distances(run: RunFolder) -> Section:
    table = grid(run, "distances", "Mean 1 − cos from the FP16 base")
    return Section("Tuning and quantization", [table], "`distances.csv`")
