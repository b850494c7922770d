"""`hq doctor`: checks the extras, devices and kernels."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.app import AsJson, app, out, print_json

_COMMAND = 28
_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


@app.command()
def doctor(
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Also quantize a small layer at each precision and multiply by it on this "
            "machine's device. This imports packages that take seconds, such as bitsandbytes.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check what this machine can run, and print what to install for the rest.

    The packages of each precision are looked up by their versions; `--deep` runs its kernel.
    """
    from harness.doctor import examine

    findings = examine(deep)
    if as_json:
        print_json([finding.model_dump() for finding in findings])
        return
    table = Table("what", "state", "detail")
    width = max((len(finding.fix) for finding in findings), default=0)
    table.add_column("fix", min_width=min(width, _COMMAND))  # commands are not wrapped
    for finding in findings:
        colour = _COLOURS[finding.state]
        state = f"[{colour}]{finding.state}[/]"
        table.add_row(finding.what, state, escape(finding.detail), escape(finding.fix))
    out.print(table)
