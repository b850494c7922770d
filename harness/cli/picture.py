"""`hq picture`: a figure of a run's AUROCs and their controls."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app, err


@app.command("picture")
def picture_command(
    run: Annotated[
        Path,
        typer.Argument(help="Folder of a finished run or of committed tables, such as runs/NAME."),
    ],
    into: Annotated[
        Path, typer.Option(help="File to write; the ending sets the format: .svg, .png or .pdf.")
    ],
) -> None:
    """Draw the AUROC of the probe and of every control at each precision.

    Example: `hq picture runs/smollm2-facts --into aurocs.svg`.
    """
    from harness.tables.picture import draw

    draw(run, into)
    err.print(f"Drawn: {into}")
