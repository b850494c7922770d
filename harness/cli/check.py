"""`hq check`: comparison of a run's tables with committed ones."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, err, out, print_json


@app.command()
def check(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/NAME.")],
    against: Annotated[Path, typer.Option(help="Folder of committed tables.")],
    accepting: Annotated[
        bool, typer.Option("--accept", help="Make the run's tables the committed ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a run with committed tables; exit with code 1 if a number regressed.

    Tolerances of columns are in tolerances.toml beside the committed tables. --accept keeps
    committed rows of precisions that the run lacks, if nothing that they depend on changed.
    """
    if accepting:
        from harness.check.acceptance import accept

        accept(run, against)
        err.print(f"{against} now holds the tables of {run}.")
        _redraw(against)
        return
    from harness.check.regress import as_frame, compare

    differences = compare(run, against)
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


def _redraw(folder: Path) -> None:
    """Draw an existing picture again, or print how to if matplotlib is missing."""
    from harness.tables.picture import PICTURE_FILE, draw

    picture = folder / PICTURE_FILE
    if picture.exists() and find_spec("matplotlib") is None:
        err.print(f"{picture} shows the earlier tables: hq picture {folder} --into {picture}.")
    elif picture.exists():
        draw(folder, picture)


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
