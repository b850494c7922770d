"""Fixtures of baking."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hq.bake import models


@pytest.fixture(scope="session")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The wide llama in a GGUF type; read only."""
    root = tmp_path_factory.mktemp("typed")

    def of(kind: str) -> Path:
        path = root / f"{kind}.gguf"
        if not path.exists():
            source = root / "wide.gguf"
            models.quantized(source if source.exists() else models.save(root), path, kind)
        return path

    return of
