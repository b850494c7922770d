"""What computes a stage here: versions of packages, device, machine. Hashed into its artefact."""

import platform
from importlib.metadata import PackageNotFoundError, version

from hq.backends.opening import device_of
from hq.backends.transformers.backend import usable_device
from hq.precisions import BACKEND_OF, PRECISIONS
from hq.precisions.base import compute_dtype

FIT = ("numba", "numpy", "scikit-learn", "scipy", "skglm")
"""What fits and what the tables' statistics are computed by."""
CONVERT = ("gguf", "llama-cpp-python", "numpy", "tokenizers", "transformers")
"""What writes and quantizes GGUF files."""
PACK = {
    "gptq": ("gptqmodel", "torch", "transformers"),
    "awq": ("auto-round", "torch", "transformers"),
}
"""What makes a packed checkpoint, by method."""
QUESTIONS = {"facts": ("airportsdata", "countryinfo", "periodictable")}
"""Packages that a scenario's questions come from."""
_RUNS = {
    "torch": ("numpy", "tokenizers", "torch", "transformers"),
    "llamacpp": ("llama-cpp-python", "numba", "numpy", "tokenizers", "transformers"),
}


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package."""
    return {package: _version(package) for package in sorted(packages)}


def engine(precision: str, device: str | None) -> dict[str, object]:
    """What runs a model at a precision: packages, device, arithmetic, and the class of machine.

    Raises HQError for an unknown precision, or a device that is not here.
    """
    backend = BACKEND_OF[precision]
    if backend != "torch":  # what its arithmetic runs in follows from the file
        return {
            "packages": versions(*_RUNS[backend]),
            "device": device_of(precision, device),
            "machine": machine_class(),
        }
    place = usable_device(device)
    return {
        "packages": versions(*_RUNS[backend], *PRECISIONS[precision].packages),
        "device": place.type,
        "compute": str(compute_dtype(place)).removeprefix("torch."),
        "machine": machine_class(),
        **PRECISIONS[precision].settings,
    }


def machine_class() -> str:
    """Operating system, processor architecture and Python, which float results can depend on."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
