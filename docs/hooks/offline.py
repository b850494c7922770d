"""Fails a build whose pages load anything from another host."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|@import\s+["'(][^;]*//[^;]+|url\(["']?(?:https?:)?//[^)]+""",
    re.IGNORECASE,
)


def loads(text: str) -> list[str]:
    """Return what a page or a style sheet loads from other hosts."""
    return _LOADS.findall(text)


def on_post_build(config: MkDocsConfig) -> None:
    """Raise PluginError for the first page or style sheet that loads something."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            found = loads(path.read_text(encoding="utf-8"))
            if found:
                raise PluginError(f"{path} loads from another host: {found[0]}")
