"""Fixtures that many tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import packed_files, tiny
from tests.no_skips import pytest_make_collect_report as pytest_make_collect_report
from tests.no_skips import pytest_runtest_makereport as pytest_runtest_makereport
from tests.packed_files import PACKINGS
from tests.sharing import shared

# What is printed is read without colours, whatever the caller's terminal is.
for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "PY_COLORS"):
    os.environ.pop(name, None)

# How long an example takes says how busy the machine is.
settings.register_profile("hq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hq")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny checkpoint of a family, saved once per run; read only."""

    def of(family: str) -> Path:
        return shared(tmp_path_factory, family, lambda folder: tiny.save(family, folder))

    return of


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The tiny model of a family as a GGUF file of a kind (`f32`, `q8_0`, …); read only."""

    def of(family: str, kind: str = "f32") -> Path:
        name = f"{family}-{kind}.gguf"
        made = shared(
            tmp_path_factory, name, lambda folder: tiny.save_gguf(family, folder / name, kind)
        )
        return made / name

    return of


@pytest.fixture(scope="session", params=tuple(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads only wait for each other on models this small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_fingerprints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache gets no entries of files that the tests remove."""
    folder = tmp_path_factory.mktemp("fingerprints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hq.storage.fingerprints.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny llama packed as a precision asks; read only."""

    def made(precision: str) -> Path:
        packing = PACKINGS[precision]
        name = f"packed-{precision}"
        folder = shared(
            tmp_path_factory,
            name,
            lambda folder: packed_files.save("llama", folder / name, packing),
        )
        return folder / name

    return made
