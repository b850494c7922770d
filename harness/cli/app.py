"""The application: its help, its output, and its handling of errors."""

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

_CHATTY = (
    "gguf",
    "torchao",
    "torch.utils._pytree",
)  # they warn about features that hq does not use

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

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress on stderr.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Handle the options before a command."""
    if version:
        out.print(__version__)
        raise typer.Exit


def print_json(value: object) -> None:
    """Print JSON on stdout, without wrapping and colours."""
    sys.stdout.write(json_text(value, indent=1) + "\n")


def json_text(value: object, indent: int | None = None) -> str:
    """Return JSON that stdout can encode: non-ASCII characters are escaped unless it is UTF-8."""
    escape_all = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    return json.dumps(value, indent=indent, ensure_ascii=escape_all)


def main() -> None:
    """Run a command: bad input is one sentence and exit code 2, Ctrl-C is exit code 130."""
    for library in _CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # characters that the locale lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except HQError as error:
        _exit(error, str(error))
    except OSError as error:
        _exit(error, _system_error(error))
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer's exit code for Ctrl-C
            err.print("Interrupted; the same command continues from here.")
        raise


def _system_error(error: OSError) -> str:
    """Describe an error of the system, which may name no file."""
    if error.errno == ENOSPC:
        where = error.filename or "the output"
        return f"No space is left for {where}: free some, or set HQ_CACHE to another disk's folder."
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename or 'A file'} cannot be used: {reason}."


def _exit(error: Exception, sentence: str) -> NoReturn:
    """Print what is wrong, and in which node if it was in one; exit with code 2."""
    node = failed_node(error)
    if node:
        sentence = f"{sentence.removesuffix('.')} (node: {node})."
    err.print(f"[red]hq:[/red] {escape(sentence)}", soft_wrap=True)
    sys.exit(BAD_INPUT)
