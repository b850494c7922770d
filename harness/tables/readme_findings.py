"""Tables and lists that documents show: which precisions changed, leak, lead or fail.

Whether a sentence is true depends on the committed tables, so its lists are computed here and not
written by hand.
"""

from collections.abc import Callable, Iterable

from harness.tables.readme_cells import (
    Cells,
    CsvTables,
    at_precisions,
    code,
    listed,
    markdown_table,
    text_of,
)

_REFERENCE = "fp16"
PROMISED = 0.1
"""The promised false-alarm rate that is shown; the table has more."""
_CONTROL_NAMES = {
    "random": "random neurons",
    "matched": "random neurons of the same layers and magnitudes",
    "entropy": "token entropy",
    "length": "answer length",
    "relation": "relation",
    "text-answer": "words of the answer",
    "text-question": "words of the question",
    "text-both": "words of both",
    "text-spelling": "characters of both",
}
_PAIRED = {
    "answer": "relation and given answer",
    "text": "relation, fold, and how well their texts predict the label",
}
_VERDICTS = {"not decided at this n": "not decided"}


def precisions_of(run: CsvTables) -> list[str]:
    """Return the precisions of a run, the reference first."""
    return [row["precision"] for row in run.rows("detection")]


def quantized(run: CsvTables) -> list[str]:
    """Return the precisions of a run without the reference."""
    return [name for name in precisions_of(run) if name != _REFERENCE]


def selected(
    run: CsvTables, table: str, holds: Callable[[Cells], bool], **where: object
) -> list[str]:
    """Return the precisions of the rows for which `holds` is true."""
    return [row["precision"] for row in run.rows(table, **where) if holds(row)]


def by_verdict(run: CsvTables, verdict: str) -> list[str]:
    """Return the quantized precisions with this verdict on the change of AUROC."""
    return [
        row["precision"]
        for row in run.rows("detection", verdict=verdict)
        if row["precision"] != _REFERENCE
    ]


def leads(run: CsvTables, control: str) -> list[str]:
    """Return the precisions at which the probe's AUROC is above the control's (95% interval)."""
    return selected(
        run, "controls", lambda row: row["probe_minus_control_low"] > 0, control=control
    )


def trails(run: CsvTables, control: str) -> list[str]:
    """Return the precisions at which the probe's AUROC is below the control's (95% interval)."""
    return selected(
        run, "controls", lambda row: row["probe_minus_control_high"] < 0, control=control
    )


def adds(run: CsvTables, control: str) -> list[str]:
    """Return the precisions at which the probe adds to the control (95% interval above 0)."""
    return selected(run, "controls", lambda row: row["probe_adds_low"] > 0, control=control)


def changes(run: CsvTables, names: Iterable[str], digits: int = 3) -> str:
    """Return the changes of AUROC at these precisions, with intervals."""
    return listed([f"`{name}` ({change(run, name, digits)})" for name in names])


def change(run: CsvTables, name: str, digits: int = 3) -> str:
    """Return the change that the verdict is about: over all checkpoints if there are several."""
    rows = run.rows("spread") if run.has("spread") else []
    spread = [row for row in rows if row["precision"] == name]
    if not spread:
        return run.estimate("detection", "auroc_change", digits, True, precision=name)
    mean = run.estimate("spread", "auroc_change", digits, True, precision=name)
    return f"{mean}, over {spread[0]['makings']} checkpoints"


def detectable(run: CsvTables, name: str) -> str:
    """Return the smallest detectable change at a precision; a dash if the table has none."""
    (row,) = run.rows("detection", precision=name)
    return _or_dash(row["detectable"])


def undecided(run: CsvTables) -> str:
    """Return the precisions without a verdict, with their smallest detectable changes."""
    names = by_verdict(run, "not decided at this n")
    items = [f"`{name}` (smallest detectable: {detectable(run, name)})" for name in names]
    return listed(items)


def comparison(run: CsvTables, control: str, name: str) -> str:
    """Return where the probe or the control has the higher AUROC, as a sentence without a stop."""
    every, better, worse = precisions_of(run), leads(run, control), trails(run, control)
    results = ((worse, f"{name} has the higher AUROC"), (better, "the probe has the higher AUROC"))
    parts = [f"{result} {at_precisions(names, every)}" for names, result in results if names]
    if not parts:
        return "no difference was detected"
    if len(better) + len(worse) < len(every):
        parts.append("no difference was detected at the others")
    return "; ".join(parts)


def paired(run: CsvTables) -> str:
    """Return what a right and a hallucinated answer of a pair have in common."""
    return _PAIRED[run.cell("design", "balance")]


def same_neurons(run: CsvTables) -> list[str]:
    """Return the precisions at which every neuron of the probe has a matching direction."""
    return selected(run, "mapping", lambda row: row["probe_found"] == row["probe"])


def fidelity(run: CsvTables, kind: str) -> list[str]:
    """Return the precisions at which contributions of the probe's neurons change in this way.

    `kind` compares with the range of 95% of the matched draws: `more`, `less`, or `same` within it.
    """
    found = []
    for name in quantized(run):
        error = run.cell("fidelity", "relative_error", precision=name, group="probe")
        (draws,) = run.rows("fidelity", precision=name, group="matched")
        low, high = draws["relative_error_low"], draws["relative_error_high"]
        position = "more" if error > high else "less" if error < low else "same"
        if position == kind:
            found.append(name)
    return found


def model_neurons(run: CsvTables) -> str:
    """Return the number of neurons of the model."""
    row = run.rows("detection", precision=_REFERENCE)[0]
    return text_of(round(1000 * row["neurons"] / row["per_mille"]))


def detection_table(run: CsvTables) -> str:
    """Return the main table: one row per precision, with the controls that the prose names."""
    header = (
        *("precision", "FP16 probe", "change from FP16", "smallest detectable", "verdict"),
        *("matched neurons", "token entropy", "re-identified", "in common", "KL to FP16"),
    )
    return markdown_table(header, [_detection_row(run, name) for name in precisions_of(run)])


def _detection_row(run: CsvTables, name: str) -> list[str]:
    where: Cells = {"precision": name}
    value, interval = (
        run.number("detection", "auroc", **where),
        run.interval("detection", "auroc", **where),
    )
    matched = run.number("controls", "auroc", control="matched", **where)
    entropy = run.number("controls", "auroc", control="entropy", **where)
    if name == _REFERENCE:
        return [name, f"**{value}** {interval}", *["—"] * 3, matched, entropy, *["—"] * 3]
    (row,) = run.rows("detection", **where)
    verdict = run.number("detection", "verdict", **where)
    return [
        name,
        f"**{value}** {interval}",
        change(run, name),
        detectable(run, name),
        _VERDICTS.get(verdict, verdict),
        matched,
        entropy,
        run.number("detection", "auroc_again", **where),
        f"{row['common']} of {row['neurons_again']}",
        run.number("model", "kl", **where),
    ]


def controls_table(run: CsvTables, precision: str) -> str:
    """Return every control at a precision: its AUROC, the probe's lead, and what the probe adds."""
    rows = []
    for row in run.rows("controls", precision=precision):
        where: Cells = {"precision": precision, "control": row["control"]}
        adds = (
            "—"
            if row["probe_adds"] is None
            else run.estimate("controls", "probe_adds", signed=True, **where)
        )
        rows.append(
            [
                _CONTROL_NAMES[row["control"]],
                run.estimate("controls", "auroc", **where),
                run.estimate("controls", "probe_minus_control", signed=True, **where),
                adds,
            ]
        )
    return markdown_table(("control", "AUROC", "probe − control", "probe adds"), rows)


def alarms_table(run: CsvTables) -> str:
    """Return the rates of thresholds that promise `PROMISED`, over all questions."""
    header = (
        *("precision", "FP16 threshold, frozen", "transferred without labels"),
        *("recalibrated with labels", "detected at the recalibrated threshold"),
    )
    rows = []
    for name in precisions_of(run):
        where: Cells = {"precision": name, "domain": "all", "promised": PROMISED}
        columns = ["false_alarms", "detected_recalibrated"]
        if name != _REFERENCE:
            columns[1:1] = ["false_alarms_transferred", "false_alarms_recalibrated"]
        cells = [run.estimate("alarms", column, **where) for column in columns]
        rows.append([name, cells[0], *(cells[1:-1] or ["—", "—"]), cells[-1]])
    return markdown_table(header, rows)


def alarms_above(run: CsvTables, column: str) -> list[str]:
    """Return the precisions at which a false-alarm rate is above the promise (95% interval)."""
    return selected(
        run,
        "alarms",
        lambda row: row[f"{column}_low"] > PROMISED,
        domain="all",
        promised=PROMISED,
    )


def suppression_table(run: CsvTables) -> str:
    """Return rates, slopes and their excess over matched draws, by scenario and precision."""
    header = (
        *("scenario", "precision", "trials", "rate", "slope", "detectable"),
        *(
            "excess over matched draws",
            "detectable",
            "p of the draws",
            "change from FP16",
            "verdict",
        ),
    )
    return markdown_table(header, [_suppression_row(run, row) for row in run.rows("slopes")])


def _suppression_row(run: CsvTables, row: Cells) -> list[str]:
    where: Cells = {"precision": row["precision"], "scenario": row["scenario"]}
    rate = run.number("rates", "rate", 2, neurons="h", alpha=1.0, **where)
    start = [row["scenario"], row["precision"], text_of(row["n"]), rate]
    if not _has_slope(row):
        return [*start, row["shape"], *["—"] * 6]
    slope, excess = (
        run.estimate("slopes", column, signed=True, **where) for column in ("slope", "excess")
    )
    compared = ["—", "—"]
    if row["precision"] != _REFERENCE:
        verdict = run.number("slopes", "verdict", **where)
        compared = [
            run.estimate("slopes", "change", signed=True, **where),
            _VERDICTS.get(verdict, verdict),
        ]
    limits = [_or_dash(row[column]) for column in ("detectable", "excess_detectable")]
    p_draws = text_of(row["p_matched"], 2)
    return [*start, slope, limits[0], excess, limits[1], p_draws, *compared]


def _or_dash(value: float | None) -> str:
    return "—" if value is None else text_of(value)


def _has_slope(row: Cells) -> bool:
    """Whether a line describes the rates; else only the curve does."""
    return not row["shape"].startswith("not monotone")


def suppression_finding(run: CsvTables) -> str:
    """Return which slopes differ from 0 and from matched draws, and where no line fits."""
    rows = run.rows("slopes")
    lines = [row for row in rows if _has_slope(row)]
    curves = [_sweep_of(row) for row in rows if not _has_slope(row)]
    nulls = [
        f"{_sweep_of(row)} ({text_of(row['detectable'])})"
        for row in lines
        if not _excludes_zero(row, "slope") and row["detectable"] is not None
    ]
    parts = [
        f"The rate rises or falls with α (95% interval of the slope excludes 0): "
        f"{listed([_sweep_of(row) for row in lines if _excludes_zero(row, 'slope')])}."
    ]
    if nulls:
        parts.append(f"Not shown, with the slope that would have been: {listed(nulls)}.")
    parts.append(
        "More than on average over the matched draws (95% interval of the excess): "
        f"{listed([_sweep_of(row) for row in lines if _excludes_zero(row, 'excess')])}."
    )
    if lines:
        p_draws = min(row["p_matched"] for row in lines)
        parts.append(
            "The smallest p of a slope against the draws is "
            f"{text_of(p_draws, 2)}, where {lines[0]['draws']} draws can show "
            f"{text_of(1 / (lines[0]['draws'] + 1), 2)}."
        )
    if curves:
        parts.append(f"No line describes {listed(curves)}: see the curves.")
    return " ".join(parts)


def _sweep_of(row: Cells) -> str:
    return f"`{row['precision']}` on {row['scenario']}"


def _excludes_zero(row: Cells, column: str) -> bool:
    return bool(row[f"{column}_low"] > 0 or row[f"{column}_high"] < 0)


def measurable(row: Cells) -> bool:
    """Whether the agreement of rules with labels is above that of every constant outcome."""
    return bool(row["kappa_low"] > 0 and row["balanced_low"] > 0.5)


def judges_table(agreement: CsvTables) -> str:
    """Return the agreement of the rule judges with a reader's labels, by scenario."""
    header = ("scenario", "responses", "agreement", "κ", "balanced accuracy", "rates")
    rows = []
    for row in agreement.rows("agreement"):
        name = f"{row['scenario']}:{row['kind']}" if row["kind"] else row["scenario"]
        of_row: Cells = {"scenario": row["scenario"], "kind": row["kind"]}
        rows.append(
            [
                name,
                text_of(row["n"]),
                text_of(row["agreement"], 2),
                agreement.estimate("agreement", "kappa", 2, **of_row),
                agreement.estimate("agreement", "balanced", 2, **of_row),
                "measurable" if measurable(row) else "not measurable",
            ]
        )
    return markdown_table(header, rows)


FUNCTIONS = {
    function.__name__: function
    for function in (
        *(precisions_of, quantized, by_verdict, adds, changes, detectable, undecided),
        *(comparison, paired),
        *(
            same_neurons,
            fidelity,
            model_neurons,
            detection_table,
            controls_table,
            alarms_table,
            alarms_above,
        ),
        *(
            suppression_table,
            suppression_finding,
            judges_table,
            leads,
            at_precisions,
            code,
            listed,
            text_of,
        ),
    )
}
