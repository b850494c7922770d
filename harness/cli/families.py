"""`hq families`: lists the supported model types and what hq can do with each."""

import sys
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, out, print_json


@app.command()
def families(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the content of docs/families.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the supported model types: record or detected, what α is baked into, GGUF support.

    Every type can be traced and scaled at all precisions of the torch backend. Other dense decoders
    are detected when they are loaded.
    """
    from hq.models.architectures import table

    if markdown:
        sys.stdout.write(table.families_markdown())
        return
    if as_json:
        print_json(
            {"families": [row._asdict() for row in table.family_rows()], "wrappers": table.WRAPPERS}
        )
        return
    shown = Table(*table.FAMILY_COLUMNS)
    for row in table.family_rows():
        shown.add_row(*row.cells)
    out.print(shown)
    out.print(f"Multimodal wrappers: {', '.join(table.WRAPPERS)}", highlight=False)
