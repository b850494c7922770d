"""Fixtures of the command line: a tiny study, and `hq` called in this process."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import ConsoleDimensions

from harness.cli import main
from harness.cli.app import err, out
from tests.harness import study
from tests.sharing import shared


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def hq(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Runs `hq` in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    # Wide, so that no table is cut: a worker of pytest-xdist sets COLUMNS before hq is imported.
    monkeypatch.setenv("COLUMNS", "400")
    for console in (out, err):
        monkeypatch.setattr(console, "size", ConsoleDimensions(400, 25))

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hq", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study.toml of the tiny study, its model and questions beside it; read only."""
    return shared(tmp_path_factory, "study", study.write) / "study.toml"


@pytest.fixture
def own_study(tiny_study: Path, tmp_path: Path) -> Path:
    """A copy of the tiny study that a test may damage."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_study.parent, folder)
    path = folder / "study.toml"
    path.write_text(
        path.read_text(encoding="utf-8").replace(str(tiny_study.parent), str(folder)),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def finished(tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/tiny` and `cache` of a finished run; read only."""

    def run(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.chdir(folder)
            patch.setenv("HQ_CACHE", str(folder / "cache"))
            patch.setattr(sys, "argv", ["hq", "study", "run", str(tiny_study), "--quiet"])
            main()
        assert not stop.value.code

    return shared(tmp_path_factory, "finished", run)
