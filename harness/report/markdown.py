"""The Markdown twin of a page: the same sentences and tables, without drawings."""

from collections.abc import Iterator, Sequence

from harness.report.grids import legend, of_frame
from harness.report.inline import to_markdown
from harness.report.page import (
    Block,
    Browser,
    Bullets,
    Facts,
    Figure,
    Grid,
    Prose,
    Report,
    Section,
)
from harness.tables.readme_cells import markdown_table

_MARK = {"warning": "**Warning.** ", "absent": "*Not shown.* ", "note": "", "plain": ""}
_SAMPLES = 50


def to_text(report: Report) -> str:
    """Return a page as Markdown."""
    parts = [f"# {to_markdown(report.title)}"]
    for run in report.runs:
        parts += [f"## {to_markdown(run.title)}", to_markdown(run.subtitle)]
        if run.part.warning:
            parts.append(f"> **Warning.** {to_markdown(run.part.warning)}")
        parts += [to_markdown(sentence) for sentence in run.part.answer]
        for section in run.part.sections:
            parts += _section(section)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"### {to_markdown(section.title)}"
    if section.source:
        yield f"Source: {section.source}"
    for block in section.blocks:
        yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Prose():
            yield _MARK[block.tone] + to_markdown(block.text)
        case Bullets():
            yield "\n".join(f"- {to_markdown(item)}" for item in block.items)
        case Facts():
            yield "\n".join(f"- {name}: {to_markdown(value)}" for name, value in block.rows)
        case Figure():
            yield f"**Figure: {to_markdown(block.title)}.** {to_markdown(block.alt)}"
            yield from _grid(of_frame("Data", block.data, block.source, most=40))
        case Grid():
            yield from _grid(block)
        case Browser():
            yield _samples(block)


def _grid(grid: Grid) -> Iterator[str]:
    yield f"**{to_markdown(grid.title)}**" + (f", from {grid.source}" if grid.source else "")
    yield _table([column.label for column in grid.columns], grid.rows)
    if grid.note:
        yield to_markdown(grid.note)
    described = legend(grid.columns)
    if described:
        yield "\n".join(f"- `{label}`: {to_markdown(text)}" for label, text in described)


def _samples(browser: Browser) -> str:
    header = ("question", "answer", "label", *(f"score, {p}" for p in browser.precisions))
    rows = [
        (
            sample.question,
            sample.answer,
            "hallucinated" if sample.hallucinated else "right",
            *(f"{score:+.2f}" for score in sample.scores),
        )
        for sample in browser.samples[:_SAMPLES]
    ]
    count = f"The first {len(rows)} of {browser.total:,} samples; the page has a browser of them."
    return f"{count}\n\n{_table(header, rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cleaned = [[_cell(cell) for cell in row] for row in (header, *rows)]
    return markdown_table(cleaned[0], cleaned[1:])


def _cell(text: str) -> str:
    return " ".join(to_markdown(text).replace("|", "\\|").split())
