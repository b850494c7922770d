"""The pages of the documentation, and the code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "results/README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def text_of(page: str) -> str:
    """The Markdown of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [code for _, name, code in _FENCE.findall(text_of(page)) if name == language]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ {4}.*$", "", _FENCE.sub("", text_of(page)), flags=re.MULTILINE)


def shell_lines(page: str) -> list[str]:
    """The first commands of the lines of code, continued lines joined, without comments."""
    text = text_of(page)
    code = "\n".join(blocks(page, "bash") + blocks(page, "yaml") + blocks(page, ""))
    indented = re.findall(r"^ {4}(\S.*)$", _FENCE.sub("", text.replace("\\\n", " ")), re.MULTILINE)
    lines = [*indented, *code.replace("\\\n", " ").splitlines()]
    stripped = (line.strip().removeprefix("- run: ") for line in lines)
    return [re.split(r"\s+(?:#|\|\|?|&&|>)(?:\s|$)", line)[0] for line in stripped]
