"""`llama-server`, built from the source of llama.cpp that the installed llama-cpp-python has."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from hq.errors import HQError
from hq.storage.places import cache_folder

PROGRAM = "llama-server"
_SETTINGS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"),
    *("-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_OPENSSL=OFF"),
    *("-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
)


def llama_server() -> Path:
    """Return the program; the first call builds it in the cache, which takes 6 minutes on 2 cores.

    The source is the sdist of llama-cpp-python's installed version, so both run the same kernels.
    Raises HQError if it cannot be downloaded or compiled.
    """
    folder = cache_folder() / PROGRAM / version("llama-cpp-python")
    name = f"{PROGRAM}.exe" if sys.platform == "win32" else PROGRAM
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (program := _found(folder, name)):
            _build(folder)
            program = _found(folder, name)
    if program is None:
        raise HQError(f"CMake built no {name} in {folder}: remove this folder and repeat.")
    return program


def _found(folder: Path, name: str) -> Path | None:
    return next(
        (path for path in (folder / "build").glob(f"bin/**/{name}") if path.is_file()), None
    )


def _build(folder: Path) -> None:
    if shutil.which("cmake") is None:
        raise HQError(f"{PROGRAM} is built with CMake and a C++ compiler: install them.")
    package = f"llama-cpp-python=={version('llama-cpp-python')}"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        _run(*pip, "--no-binary=llama-cpp-python", "--dest", temporary, package)
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as sdist:
            sdist.extractall(temporary, filter="data")
        (source,) = Path(temporary).glob("*/vendor/llama.cpp")
        draft = folder / "build-draft"  # its libraries are found relative to the program
        shutil.rmtree(draft, ignore_errors=True)
        _run("cmake", "-S", str(source), "-B", str(draft), *_SETTINGS)
        cores = str(os.cpu_count() or 1)
        _run("cmake", "--build", str(draft), "--config", "Release", "-t", PROGRAM, "-j", cores)
        draft.rename(folder / "build")


def _run(*command: str) -> None:
    done = subprocess.run(  # noqa: S603 (pip of this Python, and CMake)
        command, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise HQError(f"{PROGRAM} could not be built ({Path(command[0]).name}): {lines[-1]}")
