"""A page as one HTML file: styles, script, drawings and data are in it, and it loads nothing.

The policy of its contents (CSP) allows its own style and script by their digests, and no network.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.report.charts.style import to_svg
from harness.report.grids import legend, of_frame
from harness.report.inline import anchor, to_html
from harness.report.page import Browser, Figure, Grid, Report, Sample
from harness.report.traced import plain

_TEMPLATES = Path(__file__).with_name("templates")
_SAMPLES = 50
"""Samples that are shown without JavaScript."""
_LARGEST = 2_500_000
"""Characters of the data of a sample browser; a page stays below 5 MB."""


def to_page(report: Report) -> str:
    """Return a page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (_own(name) for name in ("report.css", "report.js"))
    drawn = iter(range(1_000_000))
    environment.filters |= {
        "inline": to_html,
        "plain": plain,
        "anchor": anchor,
        "kind": lambda block: type(block).__name__.lower(),
        "svg": lambda figure: _drawing(figure, next(drawn)),
        "data": lambda figure: of_frame(f"Data of {figure.title}", figure.data, figure.source),
        "legend": lambda grid: legend(grid.columns),
        "origin": _origin,
        "embedded": embedded,
        "first": lambda browser: browser.samples[:_SAMPLES],
        "decision": decision,
    }
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {_digest(script)}"
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        policy=policy,
    )


def decision(sample: Sample, precision: int) -> str:
    """Return the kind of a decision at FP16's threshold: `missed`, `false alarm` or `correct`."""
    flagged = sample.scores[precision] >= sample.threshold
    if flagged == sample.hallucinated:
        return "correct"
    return "false alarm" if flagged else "missed"


def embedded(browser: Browser) -> Markup:
    """Return the samples as JSON that may stand within a script element.

    Only as many samples as fit are kept, and the page says how many.
    """
    lines, size = [], 0
    for line in _sample_lines(browser):
        size += len(line) + 1
        if size > _LARGEST:
            break
        lines.append(line)
    head = json.dumps({"precisions": list(browser.precisions), "total": browser.total})
    text = f'{{"head":{head},"samples":[{",".join(lines)}]}}'
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c"))  # noqa: S704


def _sample_lines(browser: Browser) -> Iterator[str]:
    for s in browser.samples:
        record = [
            s.question,
            s.answer,
            s.relation,
            int(s.hallucinated),
            round(s.threshold, 3),
            [round(score, 3) for score in s.scores],
            list(s.tokens),
            [[round(score, 2) for score in scores] for scores in s.token_scores],
            # Decisions by the exact scores; those above are rounded.
            "".join(str(int(score >= s.threshold)) for score in s.scores),
        ]
        yield json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def _drawing(figure: Figure, number: int) -> Markup:
    svg = to_svg(figure.chart, f"f{number}-")
    label = str(Markup.escape(plain(figure.alt)))
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return Markup(svg)  # noqa: S704


def _origin(grid: Grid, row: int, column: int) -> str:
    return grid.origins[row][column] if grid.origins else ""


def _own(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{b64encode(digest).decode('ascii')}'"
