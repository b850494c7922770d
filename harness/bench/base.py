"""Benchmark results, the registry of benchmarks, and what several of them share."""

import operator
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, computed_field

from hq.neurons.prompt_response import PromptResponse
from hq.registry import Registry

_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
_PACKAGES = ("numpy", "scipy", "scikit-learn", "skglm", "numba", "torch", "transformers")

_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class BenchRow(BaseModel):
    """One figure of a benchmark.

    `goal` is ">= 5" or "<= 0.1" in the row's unit; None for a figure without a goal. `value` is
    None if a package that it needs is not installed; the note then names the package.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    value: float | None
    unit: str
    goal: str | None = Field(default=None, pattern=r"^(>=|<=) \S+$")
    note: str = ""

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented form
    @property
    def ok(self) -> bool | None:
        """Whether the value meets the goal; None without a goal or a value."""
        if self.goal is None or self.value is None:
            return None
        comparison, bound = self.goal.split()
        return _COMPARE[comparison](self.value, float(bound))


class Bench(Protocol):
    """A benchmark: every argument has a default, with which `hq bench` calls it."""

    def __call__(self) -> list[BenchRow]:
        """Measure and return the rows."""
        ...


BENCHES: Registry[Bench] = Registry("bench")
"""Filled by `harness.bench`."""


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(
    first: Callable[[], float], second: Callable[[], float], repeats: int
) -> list[tuple[float, float]]:
    """Run two measurements in alternation, and return `repeats` pairs after a warm-up pair."""
    return [(first(), second()) for _ in range(repeats + 1)][1:]


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the median of second / first over the pairs, so that a machine's pace cancels."""
    return float(median(second / first for first, second in pairs))


def median_first(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the median of the first values."""
    return float(median(first for first, _ in pairs))


def in_new_process(
    work: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """Call a module-level function in a new process, with memory of its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


def random_texts(
    rng: np.random.Generator,
    count: int,
    vocabulary: int,
    prompt: tuple[int, int],
    answer: tuple[int, int],
) -> list[PromptResponse]:
    """Return texts of random tokens.

    Args:
        rng: Draws lengths and tokens.
        count: Number of texts.
        vocabulary: Size of the vocabulary.
        prompt: Shortest prompt, and one more than the longest, in tokens.
        answer: The same for the answer.
    """

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(vocabulary, size=rng.integers(low, high)).tolist())

    return [PromptResponse(draw(*prompt), draw(*answer)) for _ in range(count)]


def report(name: str, rows: Sequence[BenchRow]) -> dict[str, Any]:
    """Return what `hq bench NAME --json` prints: the machine and one row per figure."""
    return {"bench": name, "machine": machine(), "rows": [row.model_dump() for row in rows]}


def machine() -> dict[str, Any]:
    """Return CPU, usable cores, system, Python and the versions of packages that affect speed."""
    return {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: installed for name in _PACKAGES if (installed := _version(name))},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
