"""`hq audit verify`, `hq audit query`: what a server wrote of its answers."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, err, json_text, out, print_json
from hq.errors import HQError

audit_app = typer.Typer(no_args_is_help=True, help="Check and search the log of `hq serve`.")
app.add_typer(audit_app, name="audit")

Log = Annotated[Path, typer.Argument(help="The file that `hq serve --audit` named.")]
_COLUMNS = ("time", "id", "domain", "outcome", "decision", "score", "alpha", "tokens", "seconds")


@audit_app.command()
def verify(
    log: Log,
    anchor: Annotated[
        str, typer.Option(help="A hash that was noted down: the log must still have it.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check every line of a log; exit 1 at the first that does not fit.

    A line that was changed, taken out, put in or moved is found. Lines taken off the end are not:
    what is left holds together. So note down the last hash, which this prints, where whoever can
    write the log cannot, and give it as --anchor later.
    """
    from harness.serve.chain import GENESIS, ChainError, Link
    from harness.serve.trail import trail

    link, responses, seen = Link(), 0, anchor in ("", GENESIS)
    fault = ""
    try:
        for line in trail(log):
            link = line.link
            responses += line.content.get("kind") == "response"
            seen = seen or link.sha256 == anchor
        if not seen:
            fault = f"No line has the hash {anchor}: lines were taken off the end, or all replaced."
    except ChainError as error:
        fault = str(error)
    found = {"lines": link.count, "responses": responses, "last_sha256": link.sha256}
    if as_json:
        print_json({"whole": not fault, "fault": fault or None, **found})
    elif fault:
        err.print(f"[red]Broken.[/red] The first {link.count} lines hold.", highlight=False)
        err.print(fault, markup=False, highlight=False, soft_wrap=True)
    else:
        out.print(f"{link.count} lines hold, {responses} of them responses.", highlight=False)
        out.print(f"last hash  {link.sha256}", highlight=False)
    if fault:
        raise typer.Exit(1)


@audit_app.command()
def query(
    log: Log,
    since: Annotated[str, typer.Option(help="From this time on: 2026-01-31, or with T12:30.")] = "",
    until: Annotated[str, typer.Option(help="Before this time; UTC without a zone.")] = "",
    decision: Annotated[str, typer.Option(help="pass, annotate, regenerate or block.")] = "",
    outcome: Annotated[
        str, typer.Option(help="completed, disconnected, `timed out`, `shut down` or error.")
    ] = "",
    domain: Annotated[str, typer.Option(help="Of this domain.")] = "",
    id: Annotated[str, typer.Option("--id", help="The audit_id that a client was given.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the lines themselves, with all that they say.")
    ] = False,
) -> None:
    """List the responses that match; exit 1 at the first line of the log that does not fit.

    Every line is checked on the way: nothing is listed that was tampered with.
    """
    from harness.serve.chain import ChainError

    wanted = {"decision": decision, "outcome": outcome, "domain": domain, "id": id}
    matching = _matching(
        log,
        {name: value for name, value in wanted.items() if value},
        _time(since, "since"),
        _time(until, "until"),
    )
    table = Table(*_COLUMNS)
    try:
        for content in matching:
            if as_json:
                sys.stdout.write(json_text(content) + "\n")
            else:
                table.add_row(*(_shown(content.get(name)) for name in _COLUMNS))
    except ChainError as error:
        err.print(f"Broken: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if not as_json:
        out.print(table)


def _matching(
    log: Path, wanted: dict[str, str], since: datetime | None, until: datetime | None
) -> Iterator[dict[str, Any]]:
    from harness.serve.trail import trail

    for line in trail(log):
        said = line.content
        if said.get("kind") != "response" or any(said.get(k) != v for k, v in wanted.items()):
            continue
        time = datetime.fromisoformat(str(said["time"]))
        if (since is None or time >= since) and (until is None or time < until):
            yield said


def _time(text: str, name: str) -> datetime | None:
    """Raises HQError for what is no time."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise HQError(
            f"--{name} {text!r} is no time: write 2026-01-31, or 2026-01-31T12:30."
        ) from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
