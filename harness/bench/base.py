"""What a benchmark reports, and the table of benchmarks."""

import operator
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from hq.registry import Registry

_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
_PACKAGES = ("numpy", "scipy", "scikit-learn", "skglm", "numba", "torch", "transformers")


class BenchRow(BaseModel):
    """One figure. `goal` reads ">= 5" or "<= 0.1" in the row's unit; a row without one only tells.

    `ok` follows from the two, and is None without a goal. A value is None where what it needs is
    not installed, and the note says what that is.
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
        """Whether the value reaches the goal."""
        if self.goal is None or self.value is None:
            return None
        comparison, bound = self.goal.split()
        return _COMPARE[comparison](self.value, float(bound))


Bench = Callable[..., list[BenchRow]]
BENCHES: Registry[Bench] = Registry("bench")
bench = BENCHES.register


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(name: str, rows: list[BenchRow]) -> dict[str, Any]:
    """What `hq bench NAME --json` prints: the machine, and a row per figure."""
    return {"bench": name, "machine": machine(), "rows": [row.model_dump() for row in rows]}


def machine() -> dict[str, Any]:
    """CPU, usable cores, Python, and the versions of the packages that figures depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
