"""The report of detect: whether the FP16 probe still detects hallucination at each precision."""

from collections.abc import Sequence

import polars as pl

from harness.experiments.detect import report_neurons, report_scores
from harness.experiments.detect.tables import MARGIN
from harness.report.charts.detection import auroc_points, aurocs
from harness.report.charts.forest import Look, forest
from harness.report.charts.scores import alarm_panels
from harness.report.charts.style import GREEN, GREY, PURPLE, TICK, VERMILION
from harness.report.grids import grid
from harness.report.page import Block, Figure, Part, Prose, Section
from harness.report.run import REFERENCE, RunFolder
from harness.report.traced import traced
from harness.tables.readme_cells import Cells, code, listed, text_of
from harness.tables.readme_findings import (
    alarms_above,
    by_verdict,
    change,
    comparison,
    quantized,
    undecided,
)

_VERDICTS = {
    "changed": Look(VERMILION, "square"),
    "not decided": Look(GREY, "diamond"),
    "preserved": Look(GREEN, "circle"),
    "smallest detectable change": Look(PURPLE, TICK, filled=False),
}
_TEXTS = ("text-answer", "text-question", "text-both", "text-spelling")


def report(run: RunFolder, others: Sequence[RunFolder]) -> Part:
    """Return the part of a page on a run of detect."""
    tokens = report_scores.tokens_of(run, others)
    sections = [
        _detection(run),
        _changes(run),
        *report_scores.sections(run),
        _alarms(run),
        report_neurons.neurons(run),
        report_neurons.errors(run),
        report_neurons.sizes(run),
        report_neurons.mapping(run),
        report_scores.browser(run, tokens),
    ]
    return Part(_answer(run), sections, _warning(run))


def _answer(run: RunFolder) -> list[str]:
    t = run.tables
    where: Cells = {"precision": REFERENCE}
    best = max(
        (row for row in t.rows("controls", **where) if row["control"] in _TEXTS),
        key=lambda row: float(row["auroc"]),
    )
    controls = {
        name: t.estimate("controls", "auroc", control=name, **where)
        for name in ("matched", "entropy", best["control"])
    }
    first = (
        f"On {t.count('detection', 'n', **where)} answers, half of them hallucinated, in "
        f"{t.count('detection', 'units', **where)} independent units, the FP16 probe of "
        f"{t.count('detection', 'neurons', **where)} neurons "
        f"({t.number('detection', 'per_mille', 2, **where)}‰ of the model) has an AUROC of "
        f"**{t.estimate('detection', 'auroc', **where)}**; matched random neurons have "
        f"{controls['matched']}, token entropy {controls['entropy']}, and the best text-only "
        f"control (`{best['control']}`) {controls[best['control']]}."
    )
    return [first, _changed(run)]


def _changed(run: RunFolder) -> str:
    every = quantized(run.tables)
    if not every:
        return "The run has no other precision than FP16, so nothing is said about quantization."
    parts = []
    changed, kept = by_verdict(run.tables, "changed"), by_verdict(run.tables, "preserved")
    if changed:
        worst = min(changed, key=lambda p: _change_of(run, p))
        parts.append(
            f"changed at {len(changed)} ({listed(code(changed))}; most at `{worst}`: "
            f"**{change(run.tables, worst)}**)"
        )
    if kept:
        parts.append(f"is preserved within ±{MARGIN} at {len(kept)} ({listed(code(kept))})")
    if by_verdict(run.tables, "not decided at this n"):
        parts.append(f"is not decided at this n for {undecided(run.tables)}")
    count = f"the {len(every)} other precisions" if len(every) > 1 else "the other precision"
    return f"Of {count}, the AUROC of the same neurons {', '.join(parts[:-1])}" + (
        f" and {parts[-1]}." if len(parts) > 1 else f"{parts[-1]}."
    )


def _change_of(run: RunFolder, precision: str) -> float:
    (row,) = run.tables.rows("detection", precision=precision)
    return float(row["auroc_change"])


def _warning(run: RunFolder) -> str:
    (row,) = run.tables.rows("design")
    if not row["warning"]:
        return ""
    controls = run.tables.rows("controls", precision=REFERENCE)
    texts = [control for control in controls if control["control"] in _TEXTS]
    worst = max(texts, key=lambda control: abs(control["auroc"] - 0.5))["control"]
    where: Cells = {"precision": REFERENCE, "control": worst}
    leak = traced(str(row["warning"]), "design.csv: warning")
    lead = run.tables.estimate("controls", "probe_minus_control", signed=True, **where)
    adds = run.tables.estimate("controls", "probe_adds", signed=True, **where)
    return (
        f"The labels can be predicted from text alone ({leak}), without the model. So the AUROC by "
        f"itself says little; what counts is the probe's lead over text ({lead} over `{worst}` at "
        f"FP16) and what it adds to text ({adds})."
    )


def _detection(run: RunFolder) -> Section:
    points = auroc_points(run.path)
    low, high = (
        run.tables.rows("detection", precision=REFERENCE)[0][f"auroc_{end}"]
        for end in ("low", "high")
    )
    alt = (
        f"At FP16, the probe has {text_of(points['value'][0])} [{text_of(low)}, {text_of(high)}]. "
        f"Token entropy: {comparison(run.tables, 'entropy', 'entropy')}. Matched random neurons: "
        f"{comparison(run.tables, 'matched', 'the control')}. Words of question and answer: "
        f"{comparison(run.tables, 'text-both', 'text')} (95% intervals of the paired differences). "
        "The dashed line is chance."
    )
    figure = Figure(
        "AUROC of the probe and of every control",
        alt,
        aurocs(run.path),
        points.rename({"row": "precision"}),
        "`detection.csv`: auroc, auroc_again; `controls.csv`: auroc; `makings.csv`: auroc",
    )
    controls = grid(
        run,
        "controls",
        "Controls at FP16: the probe's lead, and what it adds",
        {
            "control": "control",
            "auroc": "AUROC",
            "probe_minus_control": "probe − control",
            "probe_adds": "probe adds",
            "draws": "draws",
        },
        run.frame("controls").filter(precision=REFERENCE),
    )
    return Section(
        "Detection", [figure, controls], "`detection.csv`, `controls.csv`, `makings.csv`"
    )


def _changes(run: RunFolder) -> Section:
    detection = run.frame("detection").filter(pl.col("precision") != REFERENCE)
    table = grid(
        run,
        "detection",
        "Change and re-identification, by precision",
        {
            "precision": "precision",
            "auroc": "AUROC",
            "auroc_change": "change from FP16",
            "detectable": "smallest detectable",
            "verdict": "verdict",
            "auroc_again": "re-identified",
            "common": "in common",
        },
    )
    blocks: list[Block] = [table]
    if detection.height:
        blocks.insert(0, change_figure(run, detection))
    else:
        blocks.insert(0, Prose("The run has FP16 only, so there is no change to show.", "absent"))
    if run.has("spread"):
        rows = [
            f"`{row['precision']}`: {row['makings']} checkpoints, standard deviation "
            + run.tables.number("spread", "deviation", precision=row["precision"])
            for row in run.tables.rows("spread")
        ]
        blocks.append(
            Prose(
                f"Several checkpoints of one precision differ too ({listed(rows)}); the change and "
                "the verdict of such a precision are for another checkpoint and other questions.",
                "note",
            )
        )
    return Section("Change from FP16", blocks, "`detection.csv`, `spread.csv`")


def change_figure(run: RunFolder, detection: pl.DataFrame) -> Figure:
    """Return the paired change at each precision, with the equivalence band."""
    points = detection.select(
        pl.col("precision").alias("row"),
        pl.when(pl.col("verdict").is_in(["changed", "preserved"]))
        .then("verdict")
        .otherwise(pl.lit("not decided"))
        .alias("series"),
        pl.col("auroc_change").alias("value"),
        pl.col("auroc_change_low").alias("low"),
        pl.col("auroc_change_high").alias("high"),
        pl.col("detectable").cast(pl.Float64),
    )
    if run.has("spread"):  # the verdict is on the mean over checkpoints
        spread = run.frame("spread").select(
            pl.col("precision").alias("row"),
            pl.col("auroc_change").alias("mean"),
            pl.col("auroc_change_low").alias("mean_low"),
            pl.col("auroc_change_high").alias("mean_high"),
        )
        points = points.join(spread, on="row", how="left", maintain_order="left").select(
            "row",
            "series",
            pl.coalesce("mean", "value").alias("value"),
            pl.coalesce("mean_low", "low").alias("low"),
            pl.coalesce("mean_high", "high").alias("high"),
            "detectable",
        )
    none = pl.lit(None, pl.Float64)
    limits = pl.concat(
        [
            points.filter(pl.col("detectable").is_not_null()).select(
                "row",
                pl.lit("smallest detectable change").alias("series"),
                (sign * pl.col("detectable")).alias("value"),
                none.alias("low"),
                none.alias("high"),
            )
            for sign in (-1, 1)
        ]
    )
    drawn = pl.concat([points.drop("detectable"), limits]).with_columns(place=pl.lit("changed"))
    n, units = detection.select("n", "units").row(0)
    verdicts = [
        f"{verdict.replace(' at this n', '')}: {listed(code(by_verdict(run.tables, verdict)))}"
        for verdict in ("changed", "preserved", "not decided at this n")
    ]
    return Figure(
        "Paired change of the AUROC, with the equivalence band",
        f"Verdicts: {'; '.join(verdicts)}. The grey band is ±{MARGIN}: a change within it counts "
        "as "
        "negligible. A tick is the smallest true change that this study would show with 80% power.",
        forest(
            drawn,
            _VERDICTS,
            f"change of AUROC from FP16, {n:,} samples in {units:,} units, 95% intervals",
            rule=0,
            band=(-MARGIN, MARGIN),
        ),
        points.rename({"row": "precision", "series": "verdict", "value": "change"}),
        "`detection.csv`: auroc_change, detectable, verdict; `spread.csv`: auroc_change",
    )


def _alarms(run: RunFolder) -> Section:
    title, source = "Promised and observed false alarms", "`alarms.csv`: false_alarms, _transferred"
    rows = run.frame("alarms").filter(domain="all") if run.has("alarms") else pl.DataFrame()
    if not rows.height:
        return Section(
            title, [Prose("`alarms.csv` has no row for all questions together.", "absent")], source
        )
    names = {
        "FP16 threshold": "false_alarms",
        "transferred without labels": "false_alarms_transferred",
        "recalibrated with labels": "false_alarms_recalibrated",
    }
    rates = pl.concat(
        [
            rows.select(
                "precision",
                pl.lit(name).alias("threshold"),
                "promised",
                pl.col(column).alias("value"),
                pl.col(f"{column}_low").alias("low"),
                pl.col(f"{column}_high").alias("high"),
            )
            for name, column in names.items()
        ]
    )
    above = [
        f"{name}: {listed(code(alarms_above(run.tables, column)))}"
        for name, column in names.items()
    ]
    order = run.provenance["definition"]["precisions"]
    figure = Figure(
        "Share of right answers that are flagged, by promised rate",
        "A threshold keeps its promise on the dashed line. Above a promise of 0.1 (95% interval): "
        f"{'; '.join(above)}.",
        alarm_panels(rates, order),
        rates,
        "`alarms.csv`: false_alarms, false_alarms_transferred, false_alarms_recalibrated",
    )
    return Section(title, [figure], "`alarms.csv`, rows of domain `all`")
