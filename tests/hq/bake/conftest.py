"""Fixtures of baking."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.hq.bake import models


@pytest.fixture(scope="session")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The wide llama in a GGUF type, which takes llama.cpp to make; read only."""
    pytest.importorskip("llama_cpp")
    root = tmp_path_factory.mktemp("typed")

    def of(kind: str) -> Path:
        path = root / f"{kind}.gguf"
        if not path.exists():
            source = root / "wide.gguf"
            models.quantized(source if source.exists() else models.save(root), path, kind)
        return path

    return of


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The tiny model of a family as bitsandbytes saves it (int8, nf4, fp4, nested); read only."""
    root = tmp_path_factory.mktemp("saved")

    def of(family: str, kind: str) -> Path:
        folder = root / f"{family}-{kind}"
        if not folder.exists():
            source = root / family
            models.save_bitsandbytes(
                source if source.exists() else tiny.save(family, source), folder, kind
            )
        return folder

    return of
