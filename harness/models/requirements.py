"""Which packages each precision needs, and which of them are not installed."""

from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version

from hq.errors import HQError
from hq.precisions import BACKEND_OF, PRECISIONS
from hq.precisions.gguf import GGUF_SOURCE, file_precision
from hq.precisions.packed import NATIVE, recipe_of
from hq.precisions.packed_checkpoints.quantizers import QUANTIZERS

EXTRAS = {
    "bnb": ("bitsandbytes",),
    "embedded": ("countryinfo", "airportsdata", "periodictable", "gguf"),
    "datasets": ("datasets",),
    "gptq": ("gptqmodel", "auto-round"),
    "llama": ("llama-cpp-python", "gguf"),
    "report": ("altair", "vl-convert-python", "jinja2"),
    "serve": ("fastapi", "jinja2", "llguidance", "prometheus-client", "uvicorn"),
    "torchao": ("torch", "torchao"),
}
"""The packages of each extra of pyproject.toml."""


def installed_version(package: str) -> str:
    """The installed version of a package, or an empty string."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def packages_to_run(precision: str) -> tuple[str, ...]:
    """Return the packages that run a precision, besides torch and transformers."""
    if BACKEND_OF[precision] == "llamacpp":
        return ("llama-cpp-python",)
    return PRECISIONS[precision].packages


def packages_to_make(precision: str) -> tuple[str, ...]:
    """Return the packages that make the file or checkpoint that a precision runs."""
    if BACKEND_OF[precision] == "llamacpp":
        return () if file_precision(precision) == GGUF_SOURCE else ("gguf",)
    recipe = recipe_of(precision)
    return (QUANTIZERS[recipe.method].name,) if recipe and recipe.has_quantizer else ()


def missing_packages(packages: Collection[str]) -> list[str]:
    """Return the packages that are not installed, without duplicates."""
    return [package for package in dict.fromkeys(packages) if not installed_version(package)]


def install_command(package: str) -> str:
    """Return the command that installs a package, by the last extra that contains it."""
    extras = [name for name, packages in EXTRAS.items() if package in packages]
    return f"pip install 'hq[{extras[-1]}]'" if extras else f"pip install {package}"


def require_packages(precisions: Collection[str], checkpoints: Collection[str] = ()) -> None:
    """Raise HQError if a package that one of the precisions needs is not installed.

    `checkpoints` has the packed precisions with an existing checkpoint, which need not be made.
    """
    for precision in precisions:
        is_given = precision.removesuffix(NATIVE) in checkpoints
        lacking = missing_packages(
            packages_to_run(precision) + (() if is_given else packages_to_make(precision))
        )
        if lacking:
            raise HQError(
                f"Precision {precision!r} needs {lacking[0]}: {install_command(lacking[0])}."
            )
