"""Colours, fonts and rendering of all charts.

A chart has the fixed colours below. The page replaces them by its own, light or dark, with
selectors of CSS such as `[fill="#1d1f21"]`, so that one drawing serves both.
"""

import re
from io import StringIO
from pathlib import Path

import altair as alt

INK, MUTED, EDGE, LINE, PAPER = "#1d1f21", "#5b6065", "#85898d", "#dedbd3", "#ffffff"
# Colour-blind safe (Okabe & Ito); shapes or positions tell series apart too, for greyscale.
BLUE, SKY, GREEN, VERMILION, ORANGE, PURPLE, GREY = (
    *("#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00", "#CC79A7", "#999999"),
)
# Arial is measured alike on all machines; the last ones are about as wide where it is missing.
FONT = "Arial, Helvetica, Liberation Sans, Arimo, DejaVu Sans Condensed, sans-serif"
TICK = "M0,-1V1"  # a vertical line, as the shape of a point
_DROPPED = re.compile(
    r' (?:role|class|aria-[a-z]+|pointer-events|version|xmlns:xlink)="[^"]*"'
    r'| (?:opacity|stroke-opacity|fill-opacity)="1"'
    r'| stroke="transparent"| stroke-width="0"'
)
_EMPTY = re.compile(r'<path d="(?:M0,0h0v0h0Z)?"(?: display="none")?/>')
_CLIP = re.compile(r'(id="|url\(#)(clip\d+)')
_GROUP = re.compile(r"<g></g>|<defs></defs>")
_TAG = re.compile(r"<[^>]+>")
_ROUNDED = re.compile(r"(-?\d+\.\d{2})\d+")


def styled(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
    """Return a chart with the fonts and colours of all charts."""
    words = {"labelColor": MUTED, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11.5}
    return (
        chart.properties(background=PAPER)
        .configure(font=FONT, padding=8)
        .configure_view(stroke=None)
        .configure_axis(
            **words,
            titleFontWeight="normal",
            domainColor=EDGE,
            tickColor=EDGE,
            gridColor=LINE,
            labelLimit=260,
            titleLimit=700,
        )
        .configure_axisX(labelFlush=False)
        .configure_axisY(grid=False)
        .configure_legend(
            **words,
            titleFontWeight="normal",
            orient="top",
            symbolSize=70,
            symbolStrokeWidth=1.5,
            labelLimit=320,
            columns=3,
            columnPadding=22,
            title=None,
        )
        .configure_title(color=INK, fontSize=12, fontWeight="bold", anchor="start", offset=6)
        .configure_header(labelColor=INK, titleColor=INK, labelFontSize=11.5)
        .configure_text(color=INK)
        .configure_rule(color=EDGE)
    )


def to_svg(chart: alt.TopLevelMixin, prefix: str = "") -> str:
    """Return a chart as SVG; `prefix` keeps the ids of several drawings of one page apart.

    Attributes without effect are left out, and ids are numbered by the drawing, not by the process.
    """
    buffer = StringIO()
    styled(chart).save(buffer, format="svg")
    text = _EMPTY.sub("", _DROPPED.sub("", buffer.getvalue()))
    text = text.replace(f' font-family="{FONT}"', "").replace(
        "<svg ", f'<svg font-family="{FONT}" ', 1
    )
    while (smaller := _GROUP.sub("", text)) != text:
        text = smaller
    numbers: dict[str, int] = {}

    def renamed(match: re.Match[str]) -> str:
        return f"{match[1]}{prefix}clip{numbers.setdefault(match[2], len(numbers))}"

    # Coordinates only: numbers of the text stay as they are.
    text = _TAG.sub(lambda tag: _ROUNDED.sub(r"\1", tag[0]), text)
    return _CLIP.sub(renamed, text) + "\n"


def save(chart: alt.TopLevelMixin, path: Path, suffix: str) -> None:
    """Write a chart to a file as `.svg`, `.png` or `.pdf`."""
    if suffix == ".svg":
        path.write_text(to_svg(chart), encoding="utf-8", newline="\n")
    else:
        scale = {"scale_factor": 2} if suffix == ".png" else {}
        styled(chart).save(path, format=suffix[1:], **scale)


def zero_rule(value: float = 0.0) -> alt.Chart:
    """Return a vertical line at a value of x."""
    return alt.Chart().mark_rule(color=EDGE, strokeDash=[3, 3]).encode(x=alt.datum(value))
