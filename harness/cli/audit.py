"""`hq audit verify` and `hq audit query`: the audit log of `hq serve`."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, err, json_text, out, print_json
from hq.errors import HQError

audit_app = typer.Typer(no_args_is_help=True, help="Verify and query the log of `hq serve`.")
app.add_typer(audit_app, name="audit")

Log = Annotated[Path, typer.Argument(help="The file that `hq serve --audit` named.")]
_COLUMNS = ("time", "id", "domain", "outcome", "decision", "score", "alpha", "tokens", "seconds")


@audit_app.command("verify")
def verify_audit_log(
    log: Log,
    anchor: Annotated[
        str, typer.Option(help="A hash that was noted earlier: one of the lines must have it.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Verify every line of a log; exit 1 at the first line that does not fit.

    Changed, removed, inserted and swapped lines are detected. Lines removed from the end are not,
    because the remaining lines still form a chain. So note the last hash, which this command
    prints, where nobody who can write the log can change it, and pass it as --anchor later.
    """
    from harness.serve.audit.query import verify_log

    result = verify_log(log, anchor)
    if as_json:
        print_json(
            {
                "whole": not result.fault,
                "fault": result.fault or None,
                "lines": result.lines,
                "responses": result.responses,
                "last_sha256": result.last_sha256,
            }
        )
    elif result.fault:
        err.print(
            f"[red]Broken.[/red] Intact lines before the fault: {result.lines}.", highlight=False
        )
        err.print(result.fault, markup=False, highlight=False, soft_wrap=True)
    else:
        out.print(
            f"{result.lines} lines are intact, {result.responses} of them responses.",
            highlight=False,
        )
        out.print(f"last hash  {result.last_sha256}", highlight=False)
    if result.fault:
        raise typer.Exit(1)


@audit_app.command("query")
def query_audit_log(
    log: Log,
    since: Annotated[
        str,
        typer.Option(help="Responses from this time on: 2026-01-31 or 2026-01-31T12:30, in UTC."),
    ] = "",
    until: Annotated[
        str, typer.Option(help="Responses before this time; in UTC if it has no zone.")
    ] = "",
    decision: Annotated[str, typer.Option(help="pass, annotate, regenerate or block.")] = "",
    outcome: Annotated[
        str, typer.Option(help="completed, disconnected, `timed out`, `shut down` or error.")
    ] = "",
    domain: Annotated[str, typer.Option(help="Responses of this domain.")] = "",
    id: Annotated[str, typer.Option("--id", help="The audit_id of a client's response.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the complete lines as JSON.")
    ] = False,
) -> None:
    """List the responses that match all options; exit 1 at the first line that does not fit.

    Every line is verified while reading.
    """
    from harness.serve.audit.hash_chain import ChainError
    from harness.serve.audit.query import find_responses

    options = {"decision": decision, "outcome": outcome, "domain": domain, "id": id}
    responses = find_responses(
        log,
        {name: value for name, value in options.items() if value},
        _parse_time(since, "since"),
        _parse_time(until, "until"),
    )
    table = Table(*_COLUMNS)
    try:
        for content in responses:
            if as_json:
                sys.stdout.write(json_text(content) + "\n")
            else:
                table.add_row(*(_cell(content.get(name)) for name in _COLUMNS))
    except ChainError as error:
        err.print(f"Broken: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if not as_json:
        out.print(table)


def _parse_time(text: str, option: str) -> datetime | None:
    """Parse an option's time. Raises HQError if it is not in ISO format."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise HQError(
            f"--{option} {text!r} is not a time: write 2026-01-31 or 2026-01-31T12:30."
        ) from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
