"""`hq push`: upload a bundle or the tables of a run to a model hub."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app, err, out
from hq.errors import HQError


@app.command("push")
def push_command(
    folder: Annotated[
        Path, typer.Argument(help="A bundle, or a folder of tables: runs/NAME or results/NAME.")
    ],
    to: Annotated[
        str,
        typer.Option(help="Repository on the hub, OWNER/NAME; it is created if it is missing."),
    ] = "",
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository; default: public.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="Write the repository into this new folder, and upload nothing."),
    ] = None,
    base_model: Annotated[
        str,
        typer.Option(
            help="Hub id of the model for the card; known for smollm2 and gemma3-270m.",
            metavar="OWNER/NAME",
        ),
    ] = "",
    license: Annotated[
        str,
        typer.Option(
            help="License for the card, as the hub names it; default: that of smollm2 or "
            "gemma3-270m, none for other models."
        ),
    ] = "",
) -> None:
    """Upload a bundle or the tables of a run to the Hugging Face hub, with a card.

    The folder is verified first. Only files that a bundle's manifest or a run's results.json lists
    are uploaded, with neurons, probes, tolerances and pictures: no samples. The card has the AUROC
    at each precision as evaluation metadata. Exit code 2 without a token or a network.

    Example: `hq push results/smollm2-knowledge --into preview`.

    Example: `hq push my-bundle --to USER/NAME --private`.
    """
    from harness.deploy.publication import About, Publication

    if not to and into is None:
        raise HQError("--to is missing: name a repository OWNER/NAME, or a folder with --into DIR.")
    for option, value in (("--to", to), ("--base-model", base_model)):
        _require_id(option, value)
    publication = Publication.of(folder, About(to, base_model, license))
    if into is None:
        address = publication.upload(to, private)
        out.print(address, highlight=False, markup=False, soft_wrap=True)
        return
    publication.write(into)
    for name, content in publication.files.items():
        out.print(
            f"{len(content):>9,}  {into / name}", highlight=False, markup=False, soft_wrap=True
        )
    err.print("Nothing was uploaded.")


def _require_id(option: str, value: str) -> None:
    """Raises HQError if a value is given and is no id of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not value:
        return
    try:
        validate_repo_id(value)
        is_id = value.count("/") == 1
    except HFValidationError:
        is_id = False
    if not is_id:
        raise HQError(f"{option} {value!r} is no id of a repository: write OWNER/NAME.")
