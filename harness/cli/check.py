"""`hq check`: comparison of a run's tables with committed ones, and a verdict per precision."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from harness.cli.app import AsJson, app, err, out, print_json
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.check.verdict import Report


@app.command()
def check(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/NAME.")],
    against: Annotated[Path, typer.Option(help="Folder of committed tables.")],
    precisions: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; each must be in both folders: fp16,nf4. Default: those of RUN; "
            "further committed ones are not compared."
        ),
    ] = None,
    accepting: Annotated[
        bool, typer.Option("--accept", help="Make the run's tables the committed ones.")
    ] = False,
    junit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write JUnit XML: a suite per precision, a case per compared number.",
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="GITHUB_STEP_SUMMARY",
            help="Append the verdicts as Markdown.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a run with committed tables, and return the verdict as exit code.

    0: pass. 3: threshold-stale (the scores are as good, but the rates of the frozen threshold
    changed). 4: degraded (a number is worse than its tolerance allows). 5: inconclusive (more
    samples are needed to rule out the margin). 6: incomparable (another model, study, version of a
    stage or sample, or a precision or number is missing). 2: bad input. Of several precisions, the
    worst verdict counts: 6, then 4, 3, 5.

    Tolerances are in tolerances.toml beside the committed tables. --accept keeps committed rows of
    precisions that the run lacks, if nothing that they depend on changed.

    Example: `hq check runs/NAME --against results/NAME --junit hq.xml`.
    """
    if accepting:
        from harness.check.acceptance import accept

        accept(run, against)
        err.print(f"{against} now holds the tables of {run}.")
        _redraw(against)
        return
    from harness.check.gate import judge
    from harness.check.summary import as_json as verdicts

    report = judge(run, against, _names(precisions))
    write_reports(report, junit, summary)
    if as_json:
        print_json(verdicts(report))
    else:
        print_report(report)
    if report.verdict.exit_code:
        raise typer.Exit(report.verdict.exit_code)


def write_reports(report: "Report", junit: Path | None, summary: Path | None) -> None:
    """Write JUnit XML and append Markdown, where a file is given."""
    if junit is not None:
        from harness.check.junit import write_junit

        write_junit(report, junit)
    if summary is not None:
        from harness.check.summary import append_summary

        append_summary(report, summary)


def print_report(report: "Report") -> None:
    """Print the verdicts, what regressed, and why."""
    from harness.check.summary import failed

    if any(d.regressed for d in report.differences):
        out.print(_regressed(report))
    if report.differences:
        out.print(_verdicts(report))
        out.print(report.sentence, highlight=False)
    if report.left_out:
        out.print(f"Not in this comparison: {', '.join(report.left_out)}.", highlight=False)
    shown: list[str] = []
    for group in failed(report):
        why = f"[bold]{group.name}[/bold]: {group.verdict}: {escape(group.why)}"
        if group.why not in shown:
            out.print(why, highlight=False, soft_wrap=True)
        shown.append(group.why)
        for repair in group.repairs:
            out.print(f"  Repair: {escape(str(repair))}", highlight=False, soft_wrap=True)


def _names(precisions: str | None) -> list[str] | None:
    if precisions is None:
        return None
    names = [name.strip() for name in precisions.split(",")]
    if not all(names):
        raise HQError(f"--precisions {precisions!r} has an empty name: write fp16,nf4.")
    return names


def _redraw(folder: Path) -> None:
    """Draw an existing picture again, or print how to if Altair is missing."""
    from harness.report.picture import PICTURES, draw

    for picture in (folder / kind.file for kind in PICTURES.values()):
        if picture.exists() and find_spec("altair") is None:
            err.print(f"{picture} shows the earlier tables: hq picture {folder} --into {picture}.")
        elif picture.exists():
            draw(folder, picture)


def _verdicts(report: "Report") -> Table:
    """Return a row per precision; with the reason of the tolerance unless it passed."""
    from harness.check.summary import cells

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("precision\nverdict", no_wrap=True)
    table.add_column("worst column\nreason of its tolerance", overflow="fold")
    for name in ("committed\n95% interval", "found", "tolerance"):
        table.add_column(name, no_wrap=True)
    for group in report.groups:
        name, verdict, column, committed, found, allowed, reason = map(escape, cells(group))
        value, _, interval = committed.partition(" ")
        if reason and group.verdict.exit_code:
            column = f"{column}\n[dim]{reason}[/dim]"
        table.add_row(f"{name}\n{verdict}", column, f"{value}\n{interval}", found, allowed)
    return table


def _regressed(report: "Report") -> Table:
    from harness.check.summary import committed

    table = Table(title="Regressed")
    for name in ("table", "row", "column"):
        table.add_column(name, overflow="fold")
    for name in ("committed", "95% interval", "found", "tolerance"):
        table.add_column(name, no_wrap=True)
    for d in report.differences:
        if d.regressed:
            value, _, interval = committed(d).partition(" ")
            numbers = value, escape(interval) or "—", f"{d.found:.4g}", f"{d.allowed:.4g}"
            table.add_row(d.table, d.row, d.column, *numbers)
    return table
