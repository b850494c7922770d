"""`hq bench NAME`: speed and memory, measured against a peer in one run, as ratios."""

from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, out, print_json


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="cett, deploy, l1, logits, monitor or sampling.")],
    as_json: AsJson = False,
) -> None:
    """Measure one part of hq; rows with a goal say whether it was met."""
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
