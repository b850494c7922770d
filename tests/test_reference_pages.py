"""The generated pages have every command, key and column, and each has a description."""

import importlib.util
import re

import pytest
import typer
import yaml

from harness.cli import app
from harness.experiments import EXPERIMENTS
from harness.serve.policy.file import DomainRule, Limits, Policy
from harness.studies.study import Study
from tests.documents import ROOT, text_of


def hook(name):
    """A module of docs/hooks, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = hook("reference")


def leaves(command, name=""):
    """Every command that is not a group, by its full name."""
    if not hasattr(command, "commands"):
        return {name: command}
    parts = (leaves(part, f"{name} {word}".strip()) for word, part in command.commands.items())
    return {word: part for found in parts for word, part in found.items()}


def rows(text):
    """The cells of the rows of all tables, without headers."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines]


COMMANDS = leaves(typer.main.get_command(app))
CLI, KEYS = reference.commands(), reference.study()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_described_with_all_its_options(name):
    heading = re.search(rf"^##+ hq {name}$\n(.*?)(?=^##+ |\Z)", CLI, re.MULTILINE | re.DOTALL)
    assert heading, name
    for param in COMMANDS[name].params:
        assert param.help, f"hq {name} {param.name}"
        for option in (*param.opts, *param.secondary_opts):
            if option.startswith("-"):
                assert f"`{option}`" in heading[1], f"hq {name} {option}"


def test_a_parameter_has_its_default_and_limits():
    of_bundle = CLI.split("### hq bundle make\n")[1].split("\n##")[0]
    found = {row[0]: row[1:] for row in rows(of_bundle)}
    assert found["`--threads`"][:2] == ["`integer ≥ 1`", "`2`"]
    assert found["`--into`"][:2] == ["`path`", "required"]
    assert found["`--scorer`"][0] == "`h-neurons or combined`"
    of_run = CLI.split("## hq run\n")[1].split("\n##")[0]
    assert {row[0]: row[1] for row in rows(of_run)}["`--set`"] == "`text, repeatable`"


def sections():
    """Every pydantic type of a study's file and of the policy file."""
    own = [field.annotation for field in Study.model_fields.values()]
    nested = [kind for kind in own if isinstance(kind, type) and hasattr(kind, "model_fields")]
    experiments = [EXPERIMENTS[name].section for name in EXPERIMENTS]
    return [Study, *nested, *filter(None, experiments), Policy, DomainRule, Limits]


@pytest.mark.parametrize("kind", sections())
def test_a_key_has_a_description(kind):
    for name, field in kind.model_fields.items():
        is_section = isinstance(field.annotation, type) and hasattr(
            field.annotation, "model_fields"
        )
        assert is_section or field.description, f"{kind.__name__}.{name}"


def test_keys_have_their_types_and_defaults():
    found = {row[0]: row[1:] for row in rows(KEYS)}
    assert found["`quota`"][:2] == ["`integer ≥ 1`", "`1000`"]
    assert found["`precisions`"][:2] == ["`list of text`", '`["fp16", "nf4"]`']
    assert found["`cett`"][0] == '`"sum" or "output"`'
    assert found["`balance`"][1] == '`"answer"`'
    for kind in sections():
        page = reference.policy() if kind in (Policy, DomainRule, Limits) else KEYS
        for name in kind.model_fields:
            listed = f"| `{name}` |" in page or f"[{name}]" in page or f"[{name}." in page
            assert listed or name == "sections", f"{kind.__name__}.{name}"


def test_columns_of_all_tables_are_there():
    text = reference.columns()
    for name in EXPERIMENTS:
        for table, (kind, _) in EXPERIMENTS[name].tables.items():
            part = text.split(f"### {name}: {table}\n", 1)[1].split("\n##", 1)[0]
            for column, field in kind.model_fields.items():
                assert field.description, f"{table}.{column}"
                assert f"| `{column}` |" in part, f"{name}: {table}.{column}"


def test_every_comment_of_a_page_is_generated():
    used = set()
    for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
        names = re.findall(r"<!-- generated: (\w+) -->", path.read_text(encoding="utf-8"))
        used |= set(names)
        assert "generated:" not in reference.on_page_markdown(path.read_text(encoding="utf-8"))
    assert used == set(reference.PAGES)


def test_every_public_name_is_in_the_python_reference():
    import hq

    shown = re.findall(r"^::: hq\.(\w+)$", text_of("docs/reference/python.md"), re.MULTILINE)
    assert sorted(shown) == sorted(hq.__all__)


def test_every_page_is_in_the_navigation():
    settings = yaml.safe_load(text_of("mkdocs.yml"))

    def pages(item):
        if isinstance(item, str):
            return [item]
        parts = item if isinstance(item, list) else item.values()
        return [page for part in parts for page in pages(part)]

    listed = pages(settings["nav"])
    assert len(listed) == len(set(listed))
    docs = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == docs | {"results/README.md", "CHANGELOG.md", "CONTRIBUTING.md"}


LOADED = (
    '<script src="https://example.org/a.js"></script>',
    '<link rel="stylesheet" href="//fonts.example.org/css?family=A">',
    '<img alt="" src="http://example.org/a.png">',
    "@import url('https://example.org/a.css');",
    "a { background: url(https://example.org/a.png) }",
)


@pytest.mark.parametrize("text", LOADED)
def test_what_a_page_would_load_is_found(text):
    assert hook("offline").loads(text)


def test_links_and_own_files_are_no_loads():
    pages = '<a href="https://example.org">x</a><script src="assets/a.js"></script>url(a.png)'
    canonical = '<link rel="canonical" href="https://example.org/">'
    assert hook("offline").loads(pages + canonical) == []
