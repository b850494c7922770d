"""`hq check`: a run's tables against committed ones."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, err, out, print_json
from harness.regress import accept, as_frame
from harness.regress import compare as differences_between


@app.command()
def check(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/NAME.")],
    against: Annotated[Path, typer.Option(help="Folder of committed tables.")],
    accepting: Annotated[
        bool, typer.Option("--accept", help="Make the run's tables the committed ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a run with committed tables; exit 1 when a number regressed.

    Each column's tolerance stands in tolerances.toml beside the committed tables.
    """
    if accepting:
        accept(run, against)
        err.print(f"{against} now holds the tables of {run}.")
        return
    differences = differences_between(run, against)
    frame = as_frame(differences)
    bad = frame.filter(frame["regressed"])
    if as_json:
        print_json({"compared": len(frame), "regressed": bad.to_dicts()})
    else:
        if len(bad):
            out.print(_table(bad.to_dicts()))
        out.print(f"{len(frame)} numbers compared with {against}: {len(bad)} regressed.")
    if len(bad):
        raise typer.Exit(1)


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table(title="Regressed")
    for name in ("table", "row", "column", "expected", "found", "tolerance"):
        table.add_column(name)
    for row in rows:
        table.add_row(
            *(
                f"{v:.4g}" if isinstance(v, float) else str(v)
                for k, v in row.items()
                if k != "regressed"
            )
        )
    return table
