"""Adds files of the checkout that pages link to, such as `results/*/tables.md`, to the site.

Pages link as GitHub resolves it: `docs/evidence.md` links to `../results/…`. On the site these
files are at the same path, beside the pages of docs/.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_ALWAYS = ("results/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
_ON_SITE = (".md", ".svg", ".png")
_LINK = re.compile(r"\[([^][]*)\]\(([^)#\s]+)(#[^)]*)?\)")
_INTERVAL = re.compile(r"(\[[−+]?[\d.]+,) (?=[−+]?[\d.]+\])")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files, and what these link to."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting, seen = [*pages, *_ALWAYS], set(pages)
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            links = [_target(path, link) for _, link, _ in _LINK.findall(text)]
            waiting += [link for link in links if link not in seen and _is_added(link)]
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rewrite links to files outside of docs/; a link to other files becomes its text."""
    uri = page.file.src_uri
    added = page.file.generated_by is not None
    if added and uri.endswith("tables.md"):
        page.meta["search"] = {"exclude": True}  # numbers would fill the index
    place = uri if added else f"docs/{uri}"

    def on_site(found: re.Match[str]) -> str:
        text, link, anchor = found[1], found[2], found[3] or ""
        target = _target(place, link)
        if "://" in link or (target.startswith("docs/") and not added):
            return found[0]
        if not _is_added(target) and not target.startswith("docs/"):
            return f"`{text}`"
        target = target.removeprefix("docs/")
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(uri))}{anchor})"

    parts = _FENCE.split(markdown)  # code blocks at the odd positions
    parts[::2] = [_LINK.sub(on_site, _INTERVAL.sub("\\1\xa0", part)) for part in parts[::2]]
    return "".join(parts)


def _target(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _is_added(path: str) -> bool:
    """Whether a path is a file of the checkout, outside of docs/, that a site can show."""
    inside = path.startswith(("docs/", "../", "/")) or "://" in path
    return not inside and path.endswith(_ON_SITE) and (ROOT / path).is_file()
