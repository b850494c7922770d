"""Which packages each precision needs, and which of them are not installed."""

from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version

from hq.errors import HQError
from hq.precisions import BACKEND_OF, PRECISIONS
from hq.precisions.gguf import GGUF_SOURCE
from hq.precisions.packed import NATIVE, recipe_of
from hq.precisions.packed_checkpoints.quantizers import QUANTIZERS

EXTRAS = {
    "bnb": ("bitsandbytes",),
    "embedded": ("countryinfo", "airportsdata", "periodictable", "gguf"),
    "datasets": ("datasets",),
    "gptq": ("gptqmodel", "auto-round"),
    "llama": ("llama-cpp-python", "gguf"),
    "report": ("matplotlib",),
    "serve": ("fastapi", "jinja2", "llguidance", "prometheus-client", "uvicorn"),
    "torchao": ("torchao",),
}
"""The packages of each extra, as pyproject.toml lists them."""


def installed(package: str) -> str:
    """The installed version of a package; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def runs(precision: str) -> tuple[str, ...]:
    """The packages that run a model at a precision, beside torch and transformers."""
    if BACKEND_OF[precision] == "llamacpp":
        return ("llama-cpp-python",)
    return PRECISIONS[precision].packages


def makes(precision: str) -> tuple[str, ...]:
    """The packages that make the file or checkpoint that a precision runs."""
    if BACKEND_OF[precision] == "llamacpp":
        return () if precision == GGUF_SOURCE else ("gguf",)
    recipe = recipe_of(precision)
    return (QUANTIZERS[recipe.method].name,) if recipe and recipe.has_quantizer else ()


def missing(packages: Collection[str]) -> list[str]:
    """Those of the packages that are not installed, each once."""
    return [package for package in dict.fromkeys(packages) if not installed(package)]


def fix(package: str) -> str:
    """The command that installs a package, by the last extra that has it."""
    extras = [name for name, packages in EXTRAS.items() if package in packages]
    return f"pip install 'hq[{extras[-1]}]'" if extras else f"pip install {package}"


def require(precisions: Collection[str], checkpoints: Collection[str] = ()) -> None:
    """Raises HQError where a package is missing that one of the precisions needs.

    `checkpoints` are the packed precisions whose checkpoint exists, so that none is made.
    """
    for precision in precisions:
        is_given = precision.removesuffix(NATIVE) in checkpoints
        lacking = missing(runs(precision) + (() if is_given else makes(precision)))
        if lacking:
            raise HQError(f"Precision {precision!r} needs {lacking[0]}: {fix(lacking[0])}.")
