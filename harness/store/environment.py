"""The computing environment: versions of packages, device and machine, for keys of nodes."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from hq.backends.opening import device_of
from hq.backends.transformers.backend import usable_device
from hq.models.placement import AUTO
from hq.precisions import BACKEND_OF, PRECISIONS
from hq.precisions.base import compute_dtype
from hq.precisions.gguf import attention_of

FIT = ("numba", "numpy", "scikit-learn", "scipy", "skglm")
"""Packages that fit probes and compute the statistics of tables."""
CONVERT = ("gguf", "llama-cpp-python", "numpy", "tokenizers", "transformers")
"""Packages that write and quantize GGUF files."""
PACK = {
    "gptq": ("gptqmodel", "torch", "transformers"),
    "awq": ("auto-round", "torch", "transformers"),
}
"""Packages that make packed checkpoints, by method."""
QUESTIONS = {"facts": ("airportsdata", "countryinfo", "periodictable")}
"""Packages that the questions of a scenario come from."""
_RUNS = {
    "torch": ("numpy", "tokenizers", "torch", "transformers"),
    "llamacpp": ("llama-cpp-python", "numba", "numpy", "tokenizers", "transformers"),
}


def versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package, "not installed" if there is none."""
    return {package: _version(package) for package in sorted(packages)}


def engine(precision: str, device: str | None) -> dict[str, object]:
    """Return what runs a model at a precision: packages, device, arithmetic, class of machine.

    Raises HQError if the precision is unknown, or if this machine lacks the device.
    """
    backend = BACKEND_OF[precision]
    if backend != "torch":  # the type of the arithmetic follows from the file
        return {
            "packages": versions(*_RUNS[backend]),
            "device": device_of(precision, device),
            "machine": machine_class(),
            **attention_of(precision).settings,
        }
    torch_device = usable_device(device)
    return {
        "packages": versions(*_RUNS[backend], *PRECISIONS[precision].packages),
        "device": torch_device.type,
        **({"placement": AUTO} if device == AUTO else {}),
        "compute": str(compute_dtype(torch_device, PRECISIONS[precision])).removeprefix("torch."),
        "machine": machine_class(),
        **PRECISIONS[precision].settings,
    }


def available_memory(device: str | None) -> int:
    """Return the bytes of memory that a model may take on a device, or on `auto`, now."""
    free = int(psutil.virtual_memory().available)
    if usable_device(None if device == AUTO else device).type == "cpu":
        return free
    if device != AUTO:
        return int(torch.cuda.mem_get_info()[0])
    return free + sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))


def machine_class() -> str:
    """Return operating system, processor architecture and Python: floats can depend on them."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def threads() -> int:
    """Return the number of threads of matrix products: the last digits of results depend on it."""
    from threadpoolctl import threadpool_info

    return max((pool["num_threads"] for pool in threadpool_info()), default=1)


def use_threads(number: int) -> None:
    """Set the number of threads of matrix products in this process, also for later libraries."""
    import torch
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = str(number)
    torch.set_num_threads(number)
    threadpool_limits(number)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
