"""The page model: what a report contains, independent of HTML and Markdown.

Text is inline Markdown (`code`, **strong**, links to `#anchors`). Numbers in it are traced to the
cells of CSV files by `harness.report.traced`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    tone: Literal["plain", "warning", "absent", "note"] = "plain"
    """warning: it qualifies the result; absent: it says what the folder lacks; note: small."""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A chart, its text alternative, and its data."""

    title: str
    alt: str
    """What the chart shows, with its main numbers, for readers who do not see it."""
    chart: Any
    """An Altair chart, which this module does not import."""
    data: pl.DataFrame
    source: str
    """The files and columns that the data are from."""


@dataclass(frozen=True)
class Column:
    """A column of a table on the page."""

    label: str
    description: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. Cells are inline Markdown; `origins` has the CSV cell of each, or is empty."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    origins: Sequence[Sequence[str]] = ()
    source: str = ""
    folded: bool = False
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Sample:
    """An answer in the sample browser; scores are by precision, in the browser's order."""

    id: str
    relation: str
    question: str
    answer: str
    hallucinated: bool
    threshold: float
    scores: Sequence[float]
    tokens: Sequence[str] = ()
    token_scores: Sequence[Sequence[float]] = ()
    """One list per precision, or none for a precision without token scores."""


@dataclass(frozen=True)
class Browser:
    """The samples with their scores and decisions, by precision."""

    precisions: Sequence[str]
    samples: Sequence[Sample]
    total: int
    """Samples of the run, of which `samples` may be the first ones."""
    has_tokens: bool = False


Block = Prose | Bullets | Figure | Grid | Facts | Browser


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading."""

    title: str
    blocks: Sequence[Block]
    source: str = ""
    """The tables and columns that its numbers are from."""


@dataclass(frozen=True)
class Part:
    """What a builder makes of one run."""

    answer: Sequence[str]
    """Sentences at the top: the result, with intervals, and the controls that qualify it."""
    sections: Sequence[Section]
    warning: str = ""
    """What has to be read before the answer, such as a leak of the labels into the texts."""


@dataclass(frozen=True)
class RunReport:
    """A run on the page."""

    title: str
    kind: str
    subtitle: str
    anchor: str
    part: Part


@dataclass(frozen=True)
class Report:
    """A page."""

    title: str
    runs: Sequence[RunReport]
