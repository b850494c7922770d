"""README's commands exist, imports are light, sessions have descriptions, dependencies are pinned."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from harness.cli import app
from harness.serve.policy.file import Policy
from harness.studies.study import Study
from hq import __version__

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = re.findall(r"^    hq (.+?)(?:\s+#.*)?$", README, flags=re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_parses(line):
    command, arguments = typer.main.get_command(app), shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("hq", arguments)


def test_the_readme_shows_every_command():
    shown = {line.split()[0] for line in COMMANDS} | set(re.findall(r"`hq (\w+)", README))
    assert set(typer.main.get_command(app).commands) <= shown


def test_the_study_in_the_readme_is_valid():
    block = README.split("    name = ", 1)[1].split("\n    hq study", 1)[0]
    text = "name = " + re.sub(r"^    ", "", block, flags=re.MULTILINE)
    assert Study.model_validate(tomllib.loads(text)).sampling.quota == 1000


def test_the_policy_in_the_readme_is_valid():
    block = README.split('    domain = "all"', 1)[1].split("\nUnder `annotate`", 1)[0]
    text = 'domain = "all"' + re.sub(r"^    ", "", block, flags=re.MULTILINE)
    assert Policy.model_validate(tomllib.loads(text)).domains["all"].alpha == 0.5


def test_nox_sessions_are_in_the_readme_or_ci_and_explain_themselves():
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {
        node.name: ast.get_docstring(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    assert {"fp16", "int8", "int4", "tests", "lint", "types", "bench"} <= set(sessions)
    for name, doc in sessions.items():
        assert doc, name
        assert "\n" not in doc, name
    assert all(
        name in sessions for line in re.findall(r"nox -s ([\w ]+)", README) for name in line.split()
    )


SLOW_TO_IMPORT = (  # by seconds: torch, transformers; by tenths of one: the others
    *("altair", "bitsandbytes", "fastapi", "gguf", "huggingface_hub", "llama_cpp", "numba"),
    *("safetensors", "scipy", "skglm", "sklearn", "tokenizers", "torch", "torchao", "transformers"),
)
NOT_IN_THE_LIBRARY = ("harness", "httpx", "numpy", "polars", "psutil", "pydantic", "rich", "typer")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("hq", SLOW_TO_IMPORT + NOT_IN_THE_LIBRARY), ("harness.cli", SLOW_TO_IMPORT)],
)
def test_importing_is_light(module, unwanted):
    code = f"import sys, {module}; print(*(m for m in {unwanted} if m in sys.modules))"
    imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True, encoding="utf-8"
    )
    assert imported.stdout.split() == []


def test_the_version_is_in_the_changelog():
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_pin_is_exact_and_every_dependency_is_pinned():
    pins = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        requirement
        for name, requirements in ({"": project["dependencies"]} | extras).items()
        if name != "all"
        for requirement in requirements
    ]
    assert {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in wanted} <= pinned


def test_text_is_read_and_written_as_utf8():
    """What ruff's PLW1514 misses: it does not know that an attribute or a result is a path."""
    for folder in ("hq", "harness", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = (
                    node.func.attr
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                    else ""
                )
                keywords = {word.arg for word in node.keywords} if named else set()
                text = named in ("read_text", "write_text", "fdopen") or "text" in keywords
                if text and named in ("read_text", "write_text", "fdopen", "run", "Popen"):
                    assert "encoding" in keywords, f"{path}:{node.lineno}"


def test_what_contributing_names_exists():
    """Paths, modules and names in CONTRIBUTING.md are those of the tree."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    package = ROOT / "tests" / "outside_package" / "pyproject.toml"
    toys = tomllib.loads(package.read_text(encoding="utf-8"))["project"]["entry-points"]
    assert set(re.findall(r"entry-point group\s+`(hq\.\w+)`", text)) == set(toys)
    names = set(re.findall(r"`((?:hq|harness|tests)[/.][\w./]+)`", text)) - set(toys)
    assert len(names) > 15
    for name in names:
        if "/" in name:
            assert (ROOT / name).exists(), name
            continue
        module, attributes = name, []
        while find_spec_or_none(module) is None:
            module, _, attribute = module.rpartition(".")
            attributes.insert(0, attribute)
        thing = importlib.import_module(module)
        for attribute in attributes:
            thing = getattr(thing, attribute)


def find_spec_or_none(module):
    try:
        return find_spec(module)
    except ModuleNotFoundError:
        return None
