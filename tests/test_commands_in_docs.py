"""Every command, setting and session that a page shows exists; the fast ones are run."""

import ast
import re
import shlex
import shutil
import tomllib

import pytest
import typer
from typer.testing import CliRunner

from harness.check.limits import parse_limits
from harness.cli import app
from harness.experiments import EXPERIMENTS
from harness.serve.policy.file import Policy
from harness.studies.study import Study
from tests.documents import PAGES, ROOT, blocks, prose, shell_lines, text_of

COMMANDS = [
    (page, line.removeprefix("hq "))
    for page in PAGES
    for line in shell_lines(page)
    if line.startswith("hq ")
]


def resolve(words):
    """The command that the words name, and the words after its name."""
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    return command, rest


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_of_the_documentation_parses(page, line):
    command, arguments = resolve(shlex.split(line))
    command.make_context("hq", arguments)


@pytest.mark.parametrize(
    "line", ["trase --into x", "check", "check a b --against c", "run --alpha"]
)
def test_a_wrong_command_does_not_parse(line):
    usage_error = typer.BadParameter.__base__
    with pytest.raises((KeyError, usage_error)):
        command, arguments = resolve(shlex.split(line))
        command.make_context("hq", arguments)


@pytest.mark.parametrize("page", PAGES)
def test_a_command_in_a_sentence_exists(page):
    """Words in capitals are placeholders, so only commands and options are looked up."""
    for quoted in re.findall(r"`hq ([a-z][^`]*)`", prose(page)):
        names = [re.split(r"[|=]", word)[0] for word in quoted.replace("…", "").split()]
        command, rest = typer.main.get_command(app), names
        while hasattr(command, "commands") and rest and re.fullmatch("[a-z]+", rest[0]):
            assert rest[0] in command.commands, f"{page}: hq {quoted}"
            command, rest = command.commands[rest[0]], rest[1:]
        options = {
            name for param in command.params for name in (*param.opts, *param.secondary_opts)
        }
        for word in rest:
            assert not word.startswith("-") or word in {*options, "--help"}, f"{page}: hq {quoted}"


def test_the_documentation_shows_every_command():
    shown = {line.split()[0] for _, line in COMMANDS}
    assert set(typer.main.get_command(app).commands) <= shown


def test_the_readme_shows_what_ci_and_users_run():
    text = text_of("README.md")
    assert "pip install nox && nox -s fp16 int4" in text
    assert "nox -s tests" in text
    assert len(text.splitlines()) <= 150
    shown = {line.split()[0] for page, line in COMMANDS if page == "README.md"}
    assert {"run", "check", "monitor", "serve"} <= shown


def test_sessions_of_nox_exist_and_explain_themselves():
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {
        node.name: ast.get_docstring(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    assert {"fp16", "int8", "int4", "tests", "lint", "types", "bench", "docs"} <= set(sessions)
    for name, doc in sessions.items():
        assert doc, name
        assert "\n" not in doc, name
    for page in PAGES:
        for line in re.findall(r"nox -s ([\w ]+)", text_of(page)):
            named = [word for word in line.split() if word != "does"]
            named = named[: next((i for i, w in enumerate(named) if w not in sessions), None)]
            assert named, f"{page}: nox -s {line}"


# `check results/…` on the page of the gate has other exit codes, which its own tests compare.
QUICK = ("bundle show", "check runs/", "doctor", "families", "list", "neurons show", "picture")
COMMITTED = {path.parent.name for path in (ROOT / "results").glob("*/tables.md")}
FOLDER = re.compile(r"\b(runs|results)/([\w.-]+)")


def is_quick(line):
    """Whether a command takes seconds and its folders are here; words in capitals are not."""
    against = re.findall(r"--against (\S+)", line)
    return (
        line.startswith(QUICK)
        and {name for _, name in FOLDER.findall(line)} <= COMMITTED | {"mine"}
        and all(folder.startswith("results/") for folder in against)
        and not re.search(r"(?:^| )[A-Z]{2,}\b", line)
    )


RUN = sorted({line for _, line in COMMANDS if is_quick(line)})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with committed results, in which they are also finished runs."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in {name for line in RUN for _, name in FOLDER.findall(line)}:
        committed = ROOT / "results" / ("smollm2-knowledge" if name == "mine" else name)
        for place in ("runs", "results"):
            shutil.copytree(committed, folder / place / name)
    (folder / "found").mkdir()
    shutil.copy(ROOT / "results" / "smollm2-facts" / "neurons.json", folder / "found")
    return folder


@pytest.mark.parametrize("line", RUN)
def test_a_quick_command_runs(line, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output
    for name in re.findall(r"--into (\S+)", line):
        assert (checkout / name).stat().st_size > 0


def test_quick_commands_are_many():
    assert len(RUN) >= 10
    assert all(any(line.startswith(name) for line in RUN) for name in QUICK)


SETTINGS = [(page, block) for page in PAGES for block in blocks(page, "toml")]


@pytest.mark.parametrize(("page", "block"), SETTINGS)
def test_settings_of_the_documentation_are_valid(page, block):
    values = tomllib.loads(block)
    if "facts" in values:  # a relation of the scenario `knowledge`, which its own tests read
        assert {"question", "answers"} <= set(values)
    elif "gate" in values:
        assert parse_limits(block).gate.margin == 0.02
    elif "domain" in values:
        assert Policy.model_validate(values).domains["all"].alpha == 0.5
    else:
        study = Study.model_validate(values)
        for name, section in study.sections.items():
            EXPERIMENTS[name].section.model_validate(section)


def test_both_kinds_of_settings_are_shown():
    assert sum("domain" in tomllib.loads(block) for _, block in SETTINGS) >= 2
    assert any("quota" in block for _, block in SETTINGS)


@pytest.mark.parametrize("page", PAGES)
def test_keys_given_by_set_exist(page):
    for key, value in re.findall(r"--set ([a-z_.]+)=([^\s`]+)", text_of(page)):
        study = Study().overridden([f"{key}={value.rstrip('.,')}"])
        for name, section in study.sections.items():
            EXPERIMENTS[name].section.model_validate(section)
