"""From folders of runs to files: validation, one part per run, HTML and Markdown."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import polars as pl

from harness.report.page import Part, Report, RunReport
from harness.report.registry import REPORTS
from harness.report.run import RunFolder, read_runs, require_one_model
from harness.report.traced import unmarked
from hq.errors import HQError
from hq.storage.atomic import atomic_file

_SUFFIXES = (".html", ".htm")
_FIRST = ("detect", "tokens")  # kinds that come first on a page
_NEEDS = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}


class Written(NamedTuple):
    """The files of a report."""

    html: Path
    markdown: Path
    size: int
    """Bytes of the HTML file."""


def write_report(paths: Sequence[Path], into: Path) -> Written:
    """Write one page on some runs of one model, and its Markdown twin.

    Everything is read and drawn before a file is written. Raises HQError if a folder is no finished
    run, a table cannot be read, the models differ, or the files cannot be written.
    """
    require_target(into)
    require_extra()
    runs = sorted(read_runs(paths), key=lambda run: _rank(run.kind))
    require_one_model(runs)
    return write(page(runs), into)


def page(runs: Sequence[RunFolder]) -> Report:
    """Return the page on some runs, detect first."""
    parts = [
        _run_report(run, [r for r in runs if r is not run], f"run-{number}")
        for number, run in enumerate(runs, 1)
    ]
    studies = list(dict.fromkeys(unmarked(run.study) for run in runs))
    more = len(runs) - 1
    also = f" and {more} more run{'s' if more != 1 else ''}" if len(studies) > 1 else ""
    return Report(f"{studies[0]}{also}: {unmarked(runs[0].model)}", parts)


def write(report: Report, into: Path) -> Written:
    """Write a page and its twin; both appear complete, or neither."""
    from harness.report.html import to_page
    from harness.report.markdown import to_text

    html, text = to_page(report).encode(), to_text(report).encode()
    twin = into.with_suffix(".md")
    with atomic_file(into) as draft, atomic_file(twin) as draft_of_twin:
        draft.write_bytes(html)
        draft_of_twin.write_bytes(text)
    return Written(into, twin, len(html))


def require_target(into: Path) -> None:
    """Raises HQError if the page cannot be written there."""
    if into.suffix.lower() not in _SUFFIXES:
        raise HQError(f"{into} has no known format: end its name in .html.")
    for path in (into, into.with_suffix(".md")):
        if path.is_dir():
            raise HQError(f"{path} is a folder: name a file.")
    blocking = next((p for p in into.parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise HQError(f"{blocking} is a file: name a folder for {into.name}.")


def require_extra() -> None:
    """Raises HQError if a package of the extra `report` is missing."""
    for module, package in _NEEDS.items():
        if find_spec(module) is None:
            raise HQError(f"Reports and pictures need {package}: pip install 'hq[report]'.")


def _run_report(run: RunFolder, others: Sequence[RunFolder], anchor: str) -> RunReport:
    from harness.report import generic

    # Registry.__contains__ looks among the entry points of installed packages too.
    builder = REPORTS[run.kind] if run.kind in REPORTS else generic.report  # noqa: SIM401
    try:
        part = builder(run, others)
    except pl.exceptions.ColumnNotFoundError as error:
        raise HQError(
            f"A table in {run.path} lacks a column ({str(error).splitlines()[0]}): it was written "
            "by another version of hq, so run the experiment again."
        ) from error
    sections = [*part.sections]
    if builder is not generic.report:
        sections.append(generic.every_table(run))
    sections.append(generic.provenance(run))
    study, kind = unmarked(run.study), unmarked(run.kind)
    precisions = len(run.provenance["definition"]["precisions"])
    return RunReport(
        title=study,
        kind=kind,
        subtitle=f"Experiment `{kind}` on {unmarked(run.model)} at {precisions} "
        f"precision{'s' if precisions != 1 else ''}",
        anchor=anchor,
        part=Part(part.answer, sections, part.warning),
    )


def _rank(kind: str) -> tuple[int, str]:
    return (_FIRST.index(kind) if kind in _FIRST else len(_FIRST), kind)
