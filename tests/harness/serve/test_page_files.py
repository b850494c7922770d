"""The page's files: complete, local, and allowed by the content security policy."""

import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from harness.serve.policy.file import ActionName
from harness.serve.web.app import PAGE_FOLDER

ROOT = Path(__file__).parents[3]
FILES = sorted(PAGE_FOLDER.iterdir())
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in FILES if path.suffix == ".js"}
STYLE = (PAGE_FOLDER / "page.css").read_text(encoding="utf-8")
VOID = {"meta", "link", "input", "br", "path", "rect"}


class Page(HTMLParser):
    """Collects elements with their attributes, open elements, and inline scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append(data)


PAGE = Page((PAGE_FOLDER / "index.html").read_text(encoding="utf-8"))
IDS = [attributes["id"] for _, attributes in PAGE.elements if "id" in attributes]


def test_elements_are_closed_and_ids_are_unique():
    assert PAGE.open == []
    assert len(set(IDS)) == len(IDS)


def test_labels_and_descriptions_refer_to_elements():
    named = [
        place
        for _, attributes in PAGE.elements
        for name in ("for", "aria-labelledby", "aria-describedby")
        for place in attributes.get(name, "").split()
    ]
    assert len(named) > 5
    assert set(named) <= set(IDS)


def test_scripts_use_existing_ids():
    used_ids = {id for text in SCRIPTS.values() for id in re.findall(r'\bfind\("([^"]+)"\)', text)}
    assert len(used_ids) > 10
    assert used_ids <= set(IDS)


def test_nothing_is_inline():
    assert "".join(PAGE.scripts).strip() == ""
    for tag, attributes in PAGE.elements:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    for name, text in SCRIPTS.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function", text
        ), name
        assert not re.search(r"""["']style["']|\bstyle:""", text), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_refers_to_another_host(path):
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\b(https?|wss?):|\b(data|blob):[a-z]|[\"'(`]//", text)
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")


def test_loaded_files_exist():
    loaded = [
        a.get("src") or a.get("href") for tag, a in PAGE.elements if tag in ("script", "link")
    ]
    imported = [
        name for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)
    ]
    assert len(loaded) == 3
    assert {*loaded, *imported} == {path.name for path in FILES} - {"index.html"}


def test_every_file_is_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["harness"]
    for path in FILES:
        name = path.relative_to(ROOT / "harness").as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name


def test_every_decision_has_a_text_and_an_icon():
    decisions = SCRIPTS["answer.js"].split("const DECISIONS = {", 1)[1].split("\n};", 1)[0]
    names = re.findall(r"^  (\w+):", decisions, flags=re.MULTILINE)
    assert set(names) == {"pass", *get_args(ActionName)}
    assert {f"icon-{name}" for name in names} <= set(IDS)
    actions = SCRIPTS["settings.js"].split("const ACTIONS = {", 1)[1].split("\n};", 1)[0]
    assert set(re.findall(r"^  (\w+):", actions, flags=re.MULTILINE)) == set(get_args(ActionName))


def test_levels_differ_by_more_than_colour():
    for level in ("1", "2", "3"):
        rule = re.search(rf'\.token\[data-level="{level}"\] {{([^}}]*)}}', STYLE)[1]
        assert "text-decoration-line: underline" in rule
    styles = re.findall(r"text-decoration-style: (\w+)", STYLE)
    assert len(styles) == len(set(styles)) == 3
