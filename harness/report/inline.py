"""Inline text of the page model as HTML and as Markdown."""

import re
from html import escape

from markupsafe import Markup

from harness.report.traced import plain, replace_traced

_CODE = re.compile(r"`([^`]+)`")
_STRONG = re.compile(r"\*\*([^*]+)\*\*")
_LINK = re.compile(r"\[([^][]+)\]\((#[\w-]+)\)")


def to_html(text: str) -> Markup:
    """Return inline text as HTML; everything else in it is escaped."""
    html = escape(text)
    html = _LINK.sub(r'<a href="\2">\1</a>', html)
    html = _CODE.sub(r"<code>\1</code>", html)
    html = _STRONG.sub(r"<strong>\1</strong>", html)
    return Markup(replace_traced(html, _number))  # noqa: S704


def _number(cell: str, text: str) -> str:
    return f'<span class="number" data-cell="{cell}" title="{cell}">{text}</span>'


def to_markdown(text: str) -> str:
    """Return inline text as Markdown, without the cells of its numbers."""
    return _LINK.sub(r"\1", plain(text)).replace("<", "&lt;")


def anchor(*words: str) -> str:
    """Return words as the id of an element."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
