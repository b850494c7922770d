"""`hq picture`: a run's AUROCs and their controls, drawn."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app, err


@app.command()
def picture(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of committed tables.")],
    into: Annotated[Path, typer.Option(help="The file; its ending (svg, png, pdf) is its format.")],
) -> None:
    """Draw the AUROC of the probe and of every control at each precision."""
    from harness.tables.picture import draw

    draw(run, into)
    err.print(f"Drawn: {into}")
