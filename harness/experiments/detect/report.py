"""The report of detect: whether the FP16 probe still detects hallucination at each precision."""

from collections.abc import Sequence

import polars as pl

from harness.experiments.detect import report_scores
from harness.experiments.detect.tables import MARGIN
from harness.report.charts.detection import auroc_points, aurocs
from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.neurons import error_map, layer_bars, pareto
from harness.report.charts.scores import alarm_panels
from harness.report.charts.style import BLUE, GREEN, GREY, PURPLE, TICK, VERMILION
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
    fidelity,
    quantized,
    undecided,
)

_SPEED, _ERRORS = "speed.csv", "neuron_errors.csv"
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
        _neurons(run),
        _fidelity(run),
        _sizes(run),
        _mapping(run),
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
    low, high = (run.tables.rows("detection", precision=REFERENCE)[0][c] for c in _ends("auroc"))
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


def _ends(column: str) -> tuple[str, str]:
    return f"{column}_low", f"{column}_high"


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


def _neurons(run: RunFolder) -> Section:
    title = "Neurons by layer"
    neurons, model = run.neurons, run.provenance.get("model", {})
    if neurons is None or not model.get("d_ff"):
        text = "The folder has no neurons.json with a rectangular model, so layers are not shown."
        return Section(title, [Prose(text, "absent")])
    names = ("positive weight: H-Neurons", "negative weight")
    layers = pl.DataFrame(
        [
            (
                layer,
                name,
                1000
                * sum(n.layer == layer and (n.weight > 0) == is_h for n in neurons)
                / model["d_ff"],
            )
            for layer in range(model["n_layers"])
            for name, is_h in zip(names, (True, False), strict=True)
        ],
        schema=["layer", "sign", "per_mille"],
        orient="row",
    )
    positive = [n for n in neurons if n.weight > 0]
    depth = sorted({n.layer for n in positive})
    figure = Figure(
        "Density of the FP16 probe's neurons, per mille of each layer",
        f"{len(neurons)} neurons have a weight, and {len(positive)} of them a positive one. "
        f"H-Neurons are in layers {listed([str(layer) for layer in depth])} of "
        f"{model['n_layers']}.",
        layer_bars(layers),
        layers,
        "`neurons.json`: layer, weight",
    )
    selection = grid(
        run,
        "selection",
        "How stable the selection is, by precision",
        {
            "precision": "precision",
            "neurons": "neurons",
            "fewest": "fewest of a fold",
            "most": "most",
            "in_all_folds": "in all folds",
            "fold_jaccard": "common ÷ union of two folds",
            "stable": "stable in halves",
            "expected_false": "expected false",
        },
    )
    return Section(title, [figure, selection], "`neurons.json`, `selection.csv`")


def _fidelity(run: RunFolder) -> Section:
    rows = run.frame("fidelity").filter(pl.col("precision") != REFERENCE)
    looks = {
        "probe": Look(BLUE, "circle"),
        "matched": Look(VERMILION, "square"),
        "any": Look(GREY, "diamond"),
    }
    blocks: list[Block] = []
    if rows.height:
        drawn = rows.filter(pl.col("group").is_in(list(looks)))
        points = points_of(drawn, "relative_error", pl.col("precision"), pl.col("group"))
        kinds = [f"{kind}: {listed(code(fidelity(run.tables, kind)))}" for kind in ("more", "less")]
        blocks.append(
            Figure(
                "Relative error of contributions, compared with similar neurons",
                "How much quantization changes the contributions of the probe's neurons, of "
                f"matched draws, and of neurons of the whole model. Outside the range of 95% of "
                f"the matched draws, {'; '.join(kinds)}.",
                forest(points, looks, "relative error of contributions (matched: 95% of draws)"),
                points.rename({"row": "precision", "series": "group"}),
                "`fidelity.csv`: relative_error",
            )
        )
    blocks.append(_error_map(run))
    return Section("Fidelity of the neurons", blocks, "`fidelity.csv`, `neuron_errors.csv`")


def _error_map(run: RunFolder) -> Block:
    errors = run.file(_ERRORS)
    if errors is None:
        return Prose(
            "The error of each single neuron is not shown: the folder has no `neuron_errors.csv`, "
            "which a run writes and committed tables leave out.",
            "absent",
        )
    kept = errors.filter(pl.col("precision") != REFERENCE).with_columns(
        neuron=pl.concat_str("layer", pl.lit(":"), "index")
    )
    kept = kept.sort("weight", descending=True, maintain_order=True)
    if not kept.height:
        return Prose("The run has FP16 only, so there are no errors of neurons.", "absent")
    order = [p for p in run.provenance["definition"]["precisions"] if p != REFERENCE]
    top = kept.sort("relative_error", descending=True, nulls_last=True).row(0, named=True)
    return Figure(
        "Relative error of each neuron's contribution",
        "Σ|difference| ÷ Σ FP16 over samples, one row per neuron of the FP16 probe, the largest "
        f"weight first. Largest: neuron {top['neuron']} at {top['precision']}, "
        f"{text_of(float(top['relative_error']), 2)}.",
        error_map(kept, order),
        kept.select("precision", "neuron", "weight", "relative_error"),
        f"`{_ERRORS}`: relative_error",
    )


def _sizes(run: RunFolder) -> Section:
    model = run.frame("model").select("precision", "weights_mib", "bits_per_weight")
    points = run.frame("detection").select("precision", "auroc", *_ends("auroc"))
    points = points.join(model, on="precision", maintain_order="left")
    blocks: list[Block] = []
    if points.height:
        blocks.append(_pareto(points, "weights_mib", "size of all weights, MiB", smaller=True))
    speed = run.file(_SPEED)
    if speed is None:
        blocks.append(
            Prose(
                "Speed is not shown: the folder has no `speed.csv`, which a run writes and "
                "committed tables leave out, because it differs between machines.",
                "absent",
            )
        )
    elif points.height:
        timed = points.join(speed, on="precision", maintain_order="left")
        title = "prompt tokens per second, on the machine of the run"
        blocks.append(_pareto(timed, "prompt_tokens_per_second", title, smaller=False))
    table = grid(
        run,
        "model",
        "Size and loss, by precision",
        {
            "precision": "precision",
            "bits_per_weight": "bits per weight",
            "weights_mib": "weights, MiB",
            "perplexity": "perplexity",
            "kl": "KL to FP16, nats",
            "storage": "storage",
        },
    )
    return Section("Size, speed and detection", [*blocks, table], "`model.csv`, `speed.csv`")


def _pareto(points: pl.DataFrame, column: str, title: str, smaller: bool) -> Figure:
    rows = points.rows(named=True)
    sign = -1 if smaller else 1

    def is_best(row: dict[str, float]) -> bool:
        return not any(
            sign * o[column] >= sign * row[column]
            and o["auroc"] >= row["auroc"]
            and (o[column], o["auroc"]) != (row[column], row["auroc"])
            for o in rows
        )

    best = [is_best(row) for row in rows]
    drawn = points.with_columns(best=pl.Series(best, dtype=pl.Boolean)).with_columns(
        front=pl.when("best")
        .then(pl.lit("no other is better in both"))
        .otherwise(pl.lit("another is better in both"))
    )
    names = [row["precision"] for row, b in zip(rows, best, strict=True) if b]
    word = "smaller" if smaller else "faster"
    return Figure(
        f"AUROC against {title.split(',')[0]}",
        f"No other precision is both {word} and at a higher AUROC than {listed(code(names))}, by "
        "the point estimates; vertical lines are 95% intervals.",
        pareto(drawn, column, title),
        drawn.drop("best", "front"),
        f"`detection.csv`: auroc; `{'model' if smaller else 'speed'}.csv`: {column}",
    )


def _mapping(run: RunFolder) -> Section:
    rows = run.tables.rows("mapping")
    complete = [r["precision"] for r in rows if r["probe_found"] == r["probe"]]
    others = [r["precision"] for r in rows if r["precision"] not in complete]
    text = (
        "At every precision, each neuron of the probe corresponds to the same neuron of the FP16 "
        "model, by the weights that were loaded."
        if not others
        else f"Neurons of the probe without a matching direction: at {listed(code(others))}."
    )
    table = grid(
        run,
        "mapping",
        "Audit of the mapping, by precision",
        {
            "precision": "precision",
            "layers": "layers",
            "bits": "bits",
            "error": "error of the weights",
            "error_worst": "in the worst layer",
            "found": "share found",
            "probe_found": "probe neurons found",
            "probe": "of",
            "h_low": "h ÷ h at FP16, 5%",
            "h_high": "95%",
        },
    )
    return Section("Mapping audit", [Prose(text), table], "`mapping.csv`")
