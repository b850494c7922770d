"""The sdist and the wheel: every tracked file of the packages, and no other."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hq", "harness")
DATA = (  # a file of every kind of data
    "hq/py.typed",
    "harness/experiments/detect/tolerances.toml",
    "harness/experiments/stages.lock",
    "harness/judges/agreement.csv",
    "harness/scenarios/knowledge/relations/animal_class.toml",
    "harness/serve/page/index.html",
    "harness/studies/smollm2-knowledge.toml",
    "harness/tables/templates/readme.md.j2",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that `python -m build` makes from the sdist that it makes of a copy."""
    folder = tmp_path_factory.mktemp("packaging")
    source, target = folder / "source", folder / "dist"
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    # Without isolation, which would download setuptools.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target)]
    built = subprocess.run([*command, str(source)], capture_output=True, encoding="utf-8")
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list(target.glob("*.tar.gz"))) == 1
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def tracked():
    """The files of the packages that git has, or would add."""
    options = ("--cached", "--others", "--exclude-standard", "-z")
    listed = subprocess.run(
        ["git", "ls-files", *options, *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_has_every_tracked_file_and_no_other(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == tracked()
    assert set(DATA) <= packed


def test_the_command_is_installed(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert points["console_scripts"]["hq"] == "harness.cli:main"
