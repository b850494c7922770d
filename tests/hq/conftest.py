"""Fixtures of the library's tests."""

import shutil
from pathlib import Path

import pytest

from tests.hq import gguf_files as tiny


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in F16; read only."""
    return tiny.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """The same, to damage."""
    return Path(shutil.copy(whole, tmp_path / "tiny.gguf"))
