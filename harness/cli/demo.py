"""`hq demo`: comparison, gate and report of committed scores, in seconds."""

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from harness.cli.app import app, err, out
from harness.cli.check import print_report
from hq.errors import HQError


@app.command("demo")
def demo_command(
    into: Annotated[Path, typer.Option(help="New folder for the tables and the report.")] = Path(
        "hq-demo"
    ),
) -> None:
    """Compare precisions, check them and write a report, from scores that hq contains.

    The scores are those of a real run: an FP16 probe on answers of SmolLM2-135M-Instruct, at FP16,
    INT8, NF4 and Q4_K_M. No model is loaded. The exit code is that of the gate (see `hq check`).
    """
    from harness.check.gate import judge
    from harness.demo.demo import COMMITTED, write_run
    from harness.report.build import require_extra, write_report

    begin = perf_counter()
    require_extra()
    if into.exists():
        raise HQError(f"{into} exists: remove it, or name another folder with --into.")
    write_run(into)
    out.print("[bold]1. Compare[/bold]  the frozen FP16 probe at each precision")
    out.print(_comparison(into))
    out.print("[bold]2. Check[/bold]  against committed tables, as in CI")
    verdicts = judge(into, COMMITTED)
    print_report(verdicts)
    written = write_report([into], into / "report.html")
    out.print(f"[bold]3. Report[/bold]  {written.html} ({written.size / 1e6:.1f} MB)")
    err.print(f"{perf_counter() - begin:.1f} s. Your own model: hq init, then hq run FILE.")
    if verdicts.verdict.exit_code:
        raise typer.Exit(verdicts.verdict.exit_code)


def _comparison(folder: Path) -> Table:
    from harness.report.run import REFERENCE
    from harness.tables.readme_cells import Cells, CsvTables

    tables = CsvTables(folder)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("precision", "AUROC", "change from FP16", "token entropy", "verdict"):
        table.add_column(column, no_wrap=True)
    for row in tables.rows("detection"):
        where: Cells = {"precision": row["precision"]}
        is_reference = row["precision"] == REFERENCE
        table.add_row(
            row["precision"],
            _two_lines(tables.estimate("detection", "auroc", **where)),
            "—"
            if is_reference
            else _two_lines(tables.estimate("detection", "auroc_change", signed=True, **where)),
            _two_lines(tables.estimate("detection", "auroc_entropy", **where)),
            "—" if is_reference else row["verdict"],
        )
    return table


def _two_lines(estimate: str) -> str:
    """Return the value, and its interval below."""
    value, _, interval = estimate.partition(" ")
    return f"{value}\n[dim]{escape(interval)}[/dim]"
