"""Render results in README.md, results/README.md and docs/ from the committed CSV files.

`python -m harness.tables.readme` replaces the text between the markers of these documents; with
`--check`, it writes nothing and exits with 1 if a document differs. The prose is in
`harness/tables/templates`.
"""

import re
import sys
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from harness.tables.evidence_findings import EVIDENCE
from harness.tables.readme_cells import CsvTables
from harness.tables.readme_findings import FUNCTIONS
from harness.tables.readme_summary import SUMMARY
from hq.errors import HQError
from hq.storage.atomic import write_whole

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
CHECKOUT = Path(__file__).parents[2]
_TEMPLATES = Path(__file__).with_name("templates")
_AS_IS = ("|", "#", "!", "    ", "<!--")  # lines of tables, headings, pictures, code and comments
_ITEM = re.compile(r"(?:-|\d+\.) ")
_UNBROKEN = re.compile(r"`[^`]*`|\[[^][]*\](?:\([^)]*\))?")  # code, intervals and links


class _Document(NamedTuple):
    template: str
    width: int  # of lines of prose


DOCUMENTS: Mapping[str, _Document] = {
    "README.md": _Document("readme.md.j2", 120),
    "results/README.md": _Document("results_index.md.j2", 120),
    "docs/results.md": _Document("results.md.j2", 120),
    "docs/fair-study.md": _Document("fair_study.md.j2", 100),
    "docs/gpu.md": _Document("gpu.md.j2", 104),
    "docs/evidence.md": _Document("evidence.md.j2", 120),
}


def rendered(root: Path, document: str) -> str:
    """Return the text of a document of this checkout with its results.

    Raises HQError if a table, row or column that the template names does not exist, or if the
    document does not have the markers once.
    """
    text = (root / document).read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise HQError(f"{document} needs the lines {BEGIN} and {END} once, in this order.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    template, width = DOCUMENTS[document]
    return f"{before}{BEGIN}\n{reflow(_fill(root, template), width)}\n{END}{after}"


def outdated(root: Path) -> list[str]:
    """Return the documents of this checkout that differ from what is rendered."""
    return [
        name
        for name in DOCUMENTS
        if (root / name).read_text(encoding="utf-8") != rendered(root, name)
    ]


def reflow(markdown: str, width: int) -> str:
    """Wrap the paragraphs and list items of Markdown; tables, headings and code remain as is."""
    blocks = re.split(r"\n\s*\n", markdown.strip("\n"))
    return "\n\n".join(_wrapped(block.strip("\n"), width) for block in blocks)


def _wrapped(block: str, width: int) -> str:
    if block.startswith(_AS_IS):
        return block
    parts: list[str] = []
    for line in block.splitlines():
        if not parts or _ITEM.match(line):
            parts.append(line)
        else:
            parts[-1] += f" {line}"
    return "\n".join(_filled(part, width) for part in parts)


def _filled(text: str, width: int) -> str:
    """Wrap one paragraph or list item; code, intervals and links are not divided."""
    item = _ITEM.match(text)
    joined = _UNBROKEN.sub(lambda span: span.group().replace(" ", "\0"), " ".join(text.split()))
    return textwrap.fill(
        joined,
        width,
        subsequent_indent=" " * len(item.group()) if item else "",
        break_long_words=False,
        break_on_hyphens=False,
    ).replace("\0", " ")


def _fill(root: Path, template: str) -> str:
    # Only this command needs jinja2, which torch requires.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Markdown, not HTML: nothing is escaped.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    @cache
    def run(name: str) -> CsvTables:
        return CsvTables(root / "results" / name)

    agreement = CsvTables(root / "harness" / "judges")
    names = {**FUNCTIONS, **EVIDENCE, **SUMMARY, "run": run, "judges": agreement}
    return environment.get_template(template).render(names)


def _main(arguments: list[str]) -> int:
    try:
        if arguments == ["--check"]:
            different = outdated(CHECKOUT)
            sys.stderr.writelines(
                f"{name} differs from the tables: run python -m harness.tables.readme.\n"
                for name in different
            )
            return 1 if different else 0
        for name in DOCUMENTS:
            write_whole(CHECKOUT / name, rendered(CHECKOUT, name))
    except HQError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
