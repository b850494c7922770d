"""`hq picture`: a figure of the tables of a run."""

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
    """Draw AUROCs of the probe and its controls at each precision; for a sweep, rates over α.

    For distributions: H-Neurons per layer, CETT of right and hallucinated answers, Cliff's delta.
    For a run of specifications, draw their curve.

    Examples: `hq picture runs/smollm2-knowledge --into aurocs.svg`, and
    `hq picture runs/smollm2-knowledge-sweep --into curves.svg`.
    """
    from harness.report.picture import draw

    draw(run, into)
    err.print(f"Drawn: {into}")
