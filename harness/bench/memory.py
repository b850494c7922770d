"""Peak memory of a call in a new process, without the pages of mapped files."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, NamedTuple, ParamSpec, TypeVar

import psutil

_INTERVAL_S = 0.01  # between two readings

_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class Peak(NamedTuple, Generic[_Result]):
    """What a call returned, and the MiB of memory that it added at most."""

    result: _Result
    mib: float


def with_peak(
    prepare: Callable[[], object],
    work: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> Peak[_Result]:
    """Call module-level functions in a new process: `prepare`, and `work`, which is measured.

    The parent process reads the memory, so that compiled code, which holds the interpreter's lock,
    is measured too.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        pid = pool.submit(os.getpid).result()
        pool.submit(prepare).result()
        before = peak = anonymous_mib(pid)
        future = pool.submit(work, *args, **kwargs)
        while not future.done():
            peak = max(peak, anonymous_mib(pid))
            time.sleep(_INTERVAL_S)
        return Peak(future.result(), peak - before)


def anonymous_mib(pid: int) -> float:
    """Return the resident MiB of a process that are no pages of files.

    On Linux, RssAnon; elsewhere, the memory that is unique to the process.
    """
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
    unique: int = psutil.Process(pid).memory_full_info().uss
    return unique / 2**20
