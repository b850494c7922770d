"""What the report of detect shows of single samples: ROC, reliability, scores, and a browser."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.scores import reliability_panels, roc_panels, scatter_panels
from harness.report.page import Browser, Figure, Prose, Sample, Section
from harness.report.run import REFERENCE, RunFolder
from harness.report.scores import agreement, binned, reliability, roc
from harness.report.traced import unmarked
from harness.tables.readme_cells import text_of
from hq.errors import HQError

_ABSENT = (
    "{what} not shown: the folder has no `scores.csv` with `samples.jsonl`, which a run writes and "
    "committed tables leave out."
)


def sections(run: RunFolder) -> list[Section]:
    """Return ROC curves, reliability, and scores compared with FP16's."""
    scores = run.scores
    if scores is None:
        return [
            Section(title, [Prose(_ABSENT.format(what=what), "absent")])
            for title, what in (
                ("ROC curves", "ROC curves are"),
                ("Calibration", "Reliability is"),
                ("Scores compared with FP16", "Scores of single samples are"),
            )
        ]
    order = scores["precision"].unique(maintain_order=True).to_list()
    return [
        Section("ROC curves", [_roc(scores, order)], "`scores.csv`, `samples.jsonl`"),
        Section("Calibration", [_reliability(scores, order)], "`scores.csv`, `samples.jsonl`"),
        Section("Scores compared with FP16", [_scatter(scores, order)], "`scores.csv`: score"),
    ]


def _roc(scores: pl.DataFrame, order: Sequence[str]) -> Figure:
    curves = {p: roc(scores.filter(precision=p)) for p in order}
    frame = pl.concat(
        [
            pl.DataFrame(
                {
                    "precision": [p] * curve.shape[1],
                    "false": curve[0],
                    "detected": curve[1],
                    "reference": curves[REFERENCE][1],
                }
            )
            for p, curve in curves.items()
        ]
    )
    at = frame.filter((pl.col("false") - 0.1).abs() < 1e-9)
    shown = _extremes(at["precision"].to_list(), at["detected"].to_list(), 2)
    return Figure(
        "Detection rate by false-alarm rate",
        f"Detection rate at a false-alarm rate of 0.1: {shown}. Grey: FP16. A curve is the mean "
        "over folds, and the area below it is the AUROC of the tables.",
        roc_panels(frame, order),
        frame.filter((pl.col("false") * 50).round() % 5 == 0),
        "`scores.csv`: score; `samples.jsonl`: hallucinated, fold",
    )


def _reliability(scores: pl.DataFrame, order: Sequence[str]) -> Figure:
    bins = pl.concat(
        [
            reliability(scores.filter(precision=p)).select(pl.lit(p).alias("precision"), pl.all())
            for p in order
        ]
    )
    gaps = bins.group_by("precision", maintain_order=True).agg(
        gap=((pl.col("predicted") - pl.col("observed")).abs() * pl.col("answers")).sum()
        / pl.col("answers").sum()
    )
    shown = _extremes(gaps["precision"].to_list(), gaps["gap"].to_list(), 3)
    return Figure(
        "Reliability of the predicted probability, with counts",
        "Observed share of hallucinated answers by predicted probability, 1 ÷ (1 + exp(−score)), "
        f"with 95% intervals over units. Mean distance from the diagonal: {shown}. Half of the "
        "samples are hallucinated by design; at another base rate, probabilities must be shifted.",
        reliability_panels(bins, order),
        bins,
        "`scores.csv`: score; `samples.jsonl`: hallucinated, unit",
    )


def _scatter(scores: pl.DataFrame, order: Sequence[str]) -> Figure | Prose:
    others = [p for p in order if p != REFERENCE]
    if not others:
        return Prose("The run has FP16 only, so there are no scores to compare.", "absent")
    cells = binned(scores, REFERENCE, others)
    pairs = [agreement(scores, REFERENCE, p) for p in others]
    defined = [(p, r) for p, (r, _) in zip(others, pairs, strict=True) if r == r]
    names, values = [p for p, _ in defined], [r for _, r in defined]
    correlations = _extremes(names, values, 2) if defined else "undefined"
    shifts = _extremes(others, [shift for _, shift in pairs], 2, signed=True)
    return Figure(
        "Score of each answer at FP16 and at each other precision",
        "Cells of equal size, by the number of answers in them; scores on the dashed line did not "
        f"change. Correlation with FP16's scores: {correlations}. Mean change: {shifts}.",
        scatter_panels(cells, others, REFERENCE),
        cells,
        "`scores.csv`: score",
    )


def _extremes(
    names: Sequence[str], values: Sequence[float], digits: int, signed: bool = False
) -> str:
    """Return the smallest and the largest value with their precisions."""
    ordered = sorted(zip(values, names, strict=True))
    shown = [f"{text_of(value, digits, signed)} at `{name}`" for value, name in ordered]
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def tokens_of(run: RunFolder, others: Sequence[RunFolder]) -> RunFolder | None:
    """Return the run of tokens on the same samples, if one was given.

    Raises HQError if one was given on other samples.
    """
    given = next((other for other in others if other.kind == "tokens"), None)
    if given is not None and given.samples_digest != run.samples_digest:
        raise HQError(
            f"{given.path} has token scores of other samples than {run.path}: run tokens on the "
            "study of that run."
        )
    return given


def browser(run: RunFolder, tokens: RunFolder | None) -> Section:
    """Return the samples with their scores and decisions at FP16's threshold."""
    title = "Samples"
    scores, samples = run.scores, run.samples
    if scores is None or samples is None:
        return Section(title, [Prose(_ABSENT.format(what="Single samples are"), "absent")])
    order = scores["precision"].unique(maintain_order=True).to_list()
    by_precision = [scores.filter(precision=p) for p in order]
    values = [dict(zip(s["sample"], s["score"], strict=True)) for s in by_precision]
    thresholds = dict(zip(by_precision[0]["sample"], by_precision[0]["threshold"], strict=True))
    of_tokens: dict[str, tuple[list[str], dict[str, list[float]]]] = {}
    for line in tokens.token_scores() if tokens else ():
        of_tokens.setdefault(line.id, (line.tokens, {}))[1][line.precision] = line.probe
    shown = []
    for sample in samples:
        if not all(sample.id in of for of in values):
            continue
        texts, of = of_tokens.get(sample.id, ([], {}))
        shown.append(
            Sample(
                sample.id,
                unmarked(sample.relation),
                unmarked(sample.question),
                unmarked(sample.text).strip(),
                sample.hallucinated,
                thresholds[sample.id],
                [value[sample.id] for value in values],
                [unmarked(text) for text in texts],
                [of.get(p, []) for p in order] if of else [],
            )
        )
    shading = (
        "Tokens are shaded by the probe's score of each, relative to the threshold: orange and "
        "underlined above it, blue below."
        if of_tokens
        else "Give a run of `tokens` on the same samples too, with its `token_scores.jsonl`, to "
        "shade answers by token."
    )
    text = (
        "A decision compares the score with FP16's threshold of the sample's fold, at every "
        f"precision: `missed` is a hallucinated answer that is not flagged, `false alarm` a right "
        f"one that is. {shading}"
    )
    return Section(
        title,
        [Prose(text), Browser(order, shown, len(shown), bool(of_tokens))],
        "`scores.csv`: score, threshold; `samples.jsonl`; `token_scores.jsonl`",
    )
