"""The application itself: its help, its output, and what becomes of errors."""

import codecs
import json
import logging
import sys
from errno import ENOSPC
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from harness.store.node import failed_node
from hq import __version__
from hq.errors import HQError

BAD_INPUT = 2
INTERRUPTED = 130

_CHATTY = ("torchao", "torch.utils._pytree")  # what they lack is nothing that hq uses

out = Console()
err = Console(stderr=True)

app = typer.Typer(
    name="hq",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Find the neurons that predict when a model hallucinates, and see whether they survive "
    "quantization.\n\nStart with [bold]hq run[/bold]; [bold]hq doctor[/bold] says what this "
    "machine can run.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress on stderr.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options that stand before a command."""
    if version:
        out.print(__version__)
        raise typer.Exit


def print_json(value: object) -> None:
    """One JSON object on stdout, unwrapped and uncoloured."""
    sys.stdout.write(json_text(value, indent=1) + "\n")


def json_text(value: object, indent: int | None = None) -> str:
    """JSON that stdout can encode: letters outside ASCII are escaped unless it is UTF-8."""
    escape_all = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    return json.dumps(value, indent=indent, ensure_ascii=escape_all)


def main() -> None:
    """Runs a command. Bad input is one sentence and exit code 2; Ctrl-C is exit code 130."""
    for library in _CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a letter that the locale lacks stops no command
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except HQError as error:
        _refuse(error, str(error))
    except OSError as error:
        _refuse(error, _system_says(error))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # what typer makes of Ctrl-C
            err.print("Interrupted; the same command goes on from here.")
        raise


def _system_says(error: OSError) -> str:
    """A sentence of an error that often names no file, as when the disk is full."""
    if error.errno == ENOSPC:
        where = error.filename or "what hq writes"
        return f"No space is left for {where}: free some, or set HQ_CACHE to another disk's folder."
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename or 'A file'} cannot be used: {reason}."


def _refuse(error: Exception, sentence: str) -> NoReturn:
    """Print what is wrong, and in which node if it was in one; exit with code 2."""
    node = failed_node(error)
    if node:
        sentence = f"{sentence.removesuffix('.')} (node: {node})."
    err.print(f"[red]hq:[/red] {escape(sentence)}", soft_wrap=True)
    sys.exit(BAD_INPUT)
