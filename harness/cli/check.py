"""`hq check`: a run's tables against committed ones."""

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
    """Compare a run with committed tables; exit 1 when a number regressed.

    Each column's tolerance stands in tolerances.toml beside the committed tables. --accept keeps
    committed rows of precisions that the run does not have, where all else is the same.
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
    """Draws a picture that is there anew, or says how to: it shows the tables from before."""
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
