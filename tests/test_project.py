"""Imports are light, dependencies are pinned, text is UTF-8, and CONTRIBUTING.md names what exists."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from hq import __version__

ROOT = Path(__file__).parents[1]
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
    names = {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in wanted}
    assert names - {"hq"} <= pinned  # an extra can contain another one


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
