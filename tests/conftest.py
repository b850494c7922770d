"""Fixtures that many tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import packed_files, tiny
from tests.packed_files import PACKINGS

# How long an example takes says how busy the machine is.
settings.register_profile("hq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hq")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny checkpoint of a family, saved once a session; read only."""
    root = tmp_path_factory.mktemp("checkpoints")

    def of(family: str) -> Path:
        folder = root / family
        return folder if folder.exists() else tiny.save(family, folder)

    return of


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The tiny model of a family as a GGUF file of a kind (`f32`, `q8_0`, …); read only."""
    root = tmp_path_factory.mktemp("gguf")

    def of(family: str, kind: str = "f32") -> Path:
        path = root / f"{family}-{kind}.gguf"
        return path if path.exists() else tiny.save_gguf(family, path, kind)

    return of


@pytest.fixture(scope="session", params=tuple(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads only wait for each other on models this small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny llama packed as a precision asks; read only."""
    root = tmp_path_factory.mktemp("packed")

    def made(precision: str) -> Path:
        folder = root / precision
        if not folder.exists():
            packed_files.save("llama", folder, PACKINGS[precision])
        return folder

    return made
