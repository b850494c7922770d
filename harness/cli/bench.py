"""`hq bench NAME`: speed and memory of one part of hq, or a simulation with a known truth."""

from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, out, print_json


@app.command("bench")
def bench_command(
    name: Annotated[
        str,
        typer.Argument(
            help="cett (traces), deploy (baked weights, adapters), identify (choice of C, "
            "cross-fitting), intervals (coverage), l1 (solver), l1-large (solver, out of core; 10 "
            "minutes, 4 GB of disk), logits, monitor (watching), planted (known causal neurons), "
            "sampling, serving (8 clients, and llama-server is built first; 10 minutes), stream "
            "(models of up to 8B, layer by layer; 15 minutes, 17 GB of disk), tests (levels) or "
            "workers (scaling). scale is l1-large, serving, stream and workers. The others take 1 "
            "to 5 minutes."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Measure the speed and memory of one part of hq, or simulate data with a known truth.

    A row with a goal says whether the goal was met. Example: `hq bench l1`.
    """
    from harness.bench import BENCHES, report

    rows = BENCHES[name]()
    if as_json:
        print_json(report(name, rows))
        return
    table = Table("name", "value", "unit", "goal", "met", "note", title=f"hq bench {name}")
    for row in rows:
        met = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[row.ok]
        value = "" if row.value is None else f"{row.value:.4g}"
        table.add_row(row.name, value, row.unit, row.goal or "", met, row.note)
    out.print(table)
