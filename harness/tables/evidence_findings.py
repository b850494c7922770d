"""Tables and lists of docs/evidence.md, computed from the committed tables of the experiments."""

from harness.tables.readme_cells import Cells, CsvTables, code, listed, markdown_table, text_of

_REFERENCE = "fp16"


def p_value(p: float) -> str:
    """Return a p-value with three decimals, or as a bound."""
    return "<0.001" if p < 0.001 else text_of(p, 3)


def runs_at(run: CsvTables, table: str) -> list[str]:
    """Return the precisions of a table, in the order of the file."""
    return list(dict.fromkeys(row["precision"] for row in run.rows(table)))


def detectors_table(run: CsvTables) -> str:
    """Return the AUROC of each detector at each precision, the best at the reference first."""
    precisions = runs_at(run, "detectors")
    ranked = sorted(
        run.rows("detectors", precision=_REFERENCE), key=lambda row: -float(row["auroc"])
    )
    header = ["detector", *precisions, "H-Neurons − detector, FP16", "p (Holm)", "passes"]
    rows = []
    for row in ranked:
        name = row["detector"]
        where: Cells = {"precision": _REFERENCE, "detector": name}
        own = name == "h-neurons"
        rows.append(
            [
                f"`{name}`",
                *(
                    run.estimate("detectors", "auroc", precision=p, detector=name)
                    for p in precisions
                ),
                "—" if own else run.estimate("detectors", "probe_minus", signed=True, **where),
                "—" if own else p_value(row["p"]),
                str(row["passes"]),
            ]
        )
    return markdown_table(header, rows)


def changes_of(run: CsvTables, precision: str, *detectors: str) -> str:
    """Return the changes of some detectors from the reference."""
    return listed(
        [
            f"`{name}` "
            + run.estimate("detectors", "change", signed=True, precision=precision, detector=name)
            for name in detectors
        ]
    )


def beaten_by(run: CsvTables, precision: str, alpha: float = 0.05) -> list[str]:
    """Return the detectors that are better than H-Neurons, by p after Holm."""
    rows = run.rows("detectors", precision=precision)
    return [r["detector"] for r in rows if r["p"] < alpha and r["probe_minus"] < 0]


def beats(run: CsvTables, precision: str, alpha: float = 0.05) -> list[str]:
    """Return the detectors that H-Neurons are better than, by p after Holm."""
    rows = run.rows("detectors", precision=precision)
    return [r["detector"] for r in rows if r["p"] < alpha and r["probe_minus"] > 0]


def adds_to(run: CsvTables, precision: str, alpha: float = 0.05) -> list[str]:
    """Return the detectors to which H-Neurons add, by the log-loss and p after Holm."""
    rows = run.rows("nested", precision=precision)
    return [r["detector"] for r in rows if r["probe_p"] < alpha and r["probe_adds_loss"] > 0]


def nested_table(run: CsvTables, *detectors: str) -> str:
    """Return what H-Neurons add to some detectors, and these to H-Neurons."""
    header = ["precision", "detector", "both", "H-Neurons add", "detector adds to H-Neurons"]
    rows = []
    for precision in runs_at(run, "nested"):
        for name in detectors:
            where: Cells = {"precision": precision, "detector": name}
            rows.append(
                [
                    precision,
                    f"`{name}`",
                    run.estimate("nested", "auroc_both", **where),
                    run.estimate("nested", "probe_adds", signed=True, **where),
                    run.estimate("nested", "detector_adds", signed=True, **where),
                ]
            )
    return markdown_table(header, rows)


def drift_table(run: CsvTables) -> str:
    """Return the verdict at each precision, and the false alarms before and after a repair."""
    header = ["precision", "change of AUROC", "false alarms", "verdict", "without labels", "KS"]
    rows = [
        [
            p,
            run.estimate("drift", "auroc_change", signed=True, precision=p),
            run.estimate("drift", "false_alarms", 2, precision=p),
            str(run.cell("drift", "verdict", precision=p)),
            str(run.cell("drift", "without_labels", precision=p)),
            run.number("drift", "ks", 3, precision=p),
        ]
        for p in runs_at(run, "drift")
    ]
    return markdown_table(header, rows)


def repair_table(run: CsvTables) -> str:
    """Return what each repair restores with all unlabelled texts."""
    header = [
        "precision",
        "repair",
        "texts",
        "gain of AUROC",
        "false alarms",
        "at the same quantile",
    ]
    rows = []
    for p in runs_at(run, "repair"):
        last: dict[str, Cells] = {}
        for row in run.rows("repair", precision=p):
            last[row["method"]] = row  # the largest number of texts comes last
        for name, row in last.items():
            where: Cells = {"precision": p, "method": name, "texts": row["texts"]}
            matched = row["false_alarms_matched"]
            rows.append(
                [
                    p,
                    str(name),
                    text_of(row["texts"]),
                    run.estimate("repair", "gain", signed=True, **where),
                    run.number("repair", "false_alarms", 3, **where),
                    "—" if matched is None else text_of(matched, 3),
                ]
            )
    return markdown_table(header, rows)


def steps_table(run: CsvTables, span: str) -> str:
    """Return the AUROC of wrong against right steps, by score and precision."""
    precisions = runs_at(run, "detection")
    scorers = list(dict.fromkeys(row["scorer"] for row in run.rows("detection")))
    header = ["score", *(f"AUROC, {p}" for p in precisions), "probe − score, FP16"]
    rows = []
    for name in scorers:
        cells = []
        for p in precisions:
            where: Cells = {"precision": p, "span": span, "step": "all", "scorer": name}
            found = run.rows("detection", **where)
            measured = bool(found) and found[0]["auroc"] is not None
            cells.append(run.estimate("detection", "auroc", **where) if measured else "—")
        where = {"precision": _REFERENCE, "span": span, "step": "all", "scorer": name}
        found = run.rows("detection", **where)
        gain = bool(found) and found[0]["gain"] is not None
        shown = run.estimate("detection", "gain", signed=True, **where) if gain else "—"
        rows.append([name, *cells, shown])
    return markdown_table(header, rows)


def localisation_table(run: CsvTables, span: str) -> str:
    """Return how often each score locates the first wrong step at the reference."""
    rules = ("only wrong", "first alarm")
    header = ["score", *rules]
    scorers = dict.fromkeys(row["scorer"] for row in run.rows("localisation", span=span))
    rows = []
    for name in scorers:
        where: Cells = {"precision": _REFERENCE, "span": span, "scorer": name}
        cells = [run.estimate("localisation", "wrong", 2, rule=rule, **where) for rule in rules]
        rows.append([name, *cells])
    return markdown_table(header, rows)


def names_of(detectors: list[str]) -> str:
    """Return names as code, in one list."""
    return listed(code(detectors))


EVIDENCE = {
    function.__name__: function
    for function in (
        *(p_value, runs_at, detectors_table, changes_of, beaten_by, beats, adds_to, nested_table),
        *(drift_table, repair_table, steps_table, localisation_table, names_of),
    )
}
