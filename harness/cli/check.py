"""`hq check`: comparison of a run's tables with committed ones."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
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

    Tolerances of columns are in tolerances.toml beside the committed tables. Regressions are listed
    with the committed number, its 95% interval and the tolerance. --accept keeps committed rows of
    precisions that the run lacks, if nothing that they depend on changed.
    """
    if accepting:
        from harness.check.acceptance import accept

        accept(run, against)
        err.print(f"{against} now holds the tables of {run}.")
        _redraw(against)
        return
    from harness.check.regress import as_frame, compare, have_same_samples

    differences = compare(run, against)
    frame = as_frame(differences)
    bad = frame.filter(frame["regressed"])
    same = have_same_samples(run, against)
    if as_json:
        regressed = bad.to_dicts()
        print_json({"compared": len(frame), "same_samples": same, "regressed": regressed})
    else:
        if len(bad):
            out.print(_table(bad.to_dicts()))
        of = "the same samples" if same else "other samples, which widens tolerances"
        out.print(f"{len(frame)} numbers compared with {against} ({of}): {len(bad)} regressed.")
    if len(bad):
        raise typer.Exit(1)


def _redraw(folder: Path) -> None:
    """Draw an existing picture again, or print how to if Altair is missing."""
    from harness.report.picture import PICTURES, draw

    for picture in (folder / kind.file for kind in PICTURES.values()):
        if picture.exists() and find_spec("altair") is None:
            err.print(f"{picture} shows the earlier tables: hq picture {folder} --into {picture}.")
        elif picture.exists():
            draw(folder, picture)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Regressed")
    for name in ("table", "row", "column"):
        table.add_column(name, overflow="fold")
    for name in ("committed", "95% interval", "found", "tolerance"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        interval = "—" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"
        expected, found, tolerance = (f"{row[k]:.4g}" for k in ("expected", "found", "tolerance"))
        place = row["table"], row["row"], row["column"]
        table.add_row(*place, expected, escape(interval), found, tolerance)
    return table
