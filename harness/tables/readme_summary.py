"""The summaries in README.md and results/README.md: a few sentences and one short table."""

from harness.tables.readme_cells import Cells, CsvTables, listed, markdown_table, text_of
from harness.tables.readme_findings import change, precisions_of

_REFERENCE = "fp16"
_OWN = "h-neurons"  # name of the probe in the table `detectors`
_MAIN = ("nf4", "int8", "gguf-q4_k_m", "gptq-4")
_VERDICTS = {"not decided at this n": "not decided"}


def short_changes(run: CsvTables) -> str:
    """Return change and verdict at the most used precisions, as far as the run has them."""
    named = [name for name in _MAIN if name in precisions_of(run)]
    return listed([f"`{name}` {change(run, name)} ({_verdict(run, name)})" for name in named])


def summary_table(run: CsvTables) -> str:
    """Return AUROC, change, verdict and token entropy, one row per precision."""
    header = ("precision", "AUROC", "change from FP16", "verdict", "token entropy")
    rows = []
    for name in precisions_of(run):
        where: Cells = {"precision": name}
        compared = ["—", "—"] if name == _REFERENCE else [change(run, name), _verdict(run, name)]
        entropy = run.number("controls", "auroc", control="entropy", **where)
        rows.append([name, run.estimate("detection", "auroc", **where), *compared, entropy])
    return markdown_table(header, rows)


def _verdict(run: CsvTables, name: str) -> str:
    verdict = run.number("detection", "verdict", precision=name)
    return _VERDICTS.get(verdict, verdict)


def other_detectors(run: CsvTables, precision: str) -> list[str]:
    """Return the names of all detectors but H-Neurons."""
    rows = run.rows("detectors", precision=precision)
    return [row["detector"] for row in rows if row["detector"] != _OWN]


def best_detector(run: CsvTables, precision: str) -> str:
    """Return the other detector with the highest AUROC, and its AUROC."""
    best = max(
        other_detectors(run, precision),
        key=lambda name: float(run.cell("detectors", "auroc", precision=precision, detector=name)),
    )
    area = run.estimate("detectors", "auroc", precision=precision, detector=best)
    return f"`{best}`, {area}"


def slopes_of(run: CsvTables, scenario: str) -> str:
    """Return the slope of a scenario at each precision: the change of its rate per unit of α."""
    rows = run.rows("slopes", scenario=scenario)
    return listed(
        [
            run.estimate("slopes", "slope", signed=True, scenario=scenario, precision=p)
            + f" at `{p}`"
            for p in (row["precision"] for row in rows)
        ]
    )


def draws_of(run: CsvTables, scenario: str) -> str:
    """Return the p of each slope against the draws of matched neurons."""
    rows = run.rows("slopes", scenario=scenario)
    return listed([f"{text_of(row['p_matched'], 2)} at `{row['precision']}`" for row in rows])


def verdicts_of(run: CsvTables) -> str:
    """Return the verdict of a drift run at each precision."""
    return listed([f"`{row['verdict']}` at `{row['precision']}`" for row in run.rows("drift")])


SUMMARY = {
    function.__name__: function
    for function in (
        *(short_changes, summary_table, other_detectors, best_detector, slopes_of, draws_of),
        verdicts_of,
    )
}
