"""The wheel: every package and every data file of the source, and nothing else."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hq", "harness")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the source as `pip install .` builds it."""
    folder = tmp_path_factory.mktemp("packaging")
    source, target = folder / "source", folder / "wheel"
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    # Without isolation, which would download setuptools.
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(target)]
    subprocess.run([*command, str(source)], check=True)
    (built,) = target.glob("*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


def test_every_file_of_the_source_is_in_the_wheel(wheel):
    source = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"hq/py.typed", "harness/serve/page/index.html"} <= source
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == source


def test_the_command_is_installed(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert points["console_scripts"]["hq"] == "harness.cli:main"
