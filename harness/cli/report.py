"""`hq report`: one page on finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app, err
from hq.errors import HQError

_DEFAULT = Path("report.html")


@app.command("report")
def report_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of finished runs or of committed tables, such as runs/NAME. Several "
            "runs of one model become sections of one page."
        ),
    ],
    into: Annotated[
        Path,
        typer.Option(help="HTML file to write; the Markdown twin has the same name with .md."),
    ] = _DEFAULT,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Report what changed from the first to the second of two runs."
        ),
    ] = False,
) -> None:
    """Write one self-contained HTML page on finished runs, and the same as Markdown.

    The page starts with the result in two sentences, with 95% intervals and the controls that
    qualify it. It has figures with their data, a browser of the samples if the folder has
    scores.csv, all tables, and the provenance. It loads nothing from a network, prints, and opens
    without a server. Give a run of `tokens` beside the run of `detect` on the same samples to
    shade the answers by token.

    With --compare, each number that both runs have is compared, with a 95% interval: paired by
    sample if both have scores of the same samples, else by the intervals of the two runs.

    Examples: `hq report runs/smollm2-knowledge --into report.html`,
    `hq report runs/smollm2-knowledge runs/smollm2-knowledge-tokens`, and
    `hq report --compare results/smollm2-knowledge runs/smollm2-knowledge`.
    """
    from harness.report.build import write_report

    if compare:
        if len(runs) != 2:
            raise HQError(f"--compare needs two runs, and {len(runs)} were given.")
        from harness.report.compare import write_comparison

        written = write_comparison(runs[0], runs[1], into)
    else:
        written = write_report(runs, into)
    err.print(
        f"Written: {written.html} ({written.size / 1e6:.1f} MB) and {written.markdown}",
        soft_wrap=True,
    )
